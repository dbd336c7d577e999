"""An exported Python file asks for the same, byte by byte, and gives the same as mmc, in a process that has no mmc."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from mmc.build.export import ExportJob, export
from mmc.data import Example
from mmc.engine import open_engines
from mmc.errors import UsageError
from mmc.program.graph import Program
from mmc.program.run import RunSettings, run_all
from mmc.spec import load

REPO = Path(__file__).parents[2]


class Stub:
    """A server of OpenAI's chat API that answers by the request alone, and keeps the bytes of all requests."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []

    def answer(self, body: dict[str, Any]) -> str:
        said = body["messages"][-1]["content"]
        form = body.get("structured_outputs", {})
        if "choice" in form:
            return f" {form['choice'][len(said) % len(form['choice'])].upper()} "
        if "json" in form or "response_format" in body:
            return 'Here: {"words": ["red", "blue"], "count": 2, "sure": true}'
        words = re.findall(r"[A-Z]\w+", said) or ["nothing"]
        return ", ".join(words[-4:])


@pytest.fixture
def stub() -> Iterator[tuple[Stub, str]]:
    kept = Stub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            raw = self.rfile.read(int(self.headers["Content-Length"]))
            kept.bodies.append(raw)
            message = {"role": "assistant", "content": kept.answer(json.loads(raw))}
            found = {"choices": [{"message": message, "finish_reason": "stop"}], "usage": {}}
            text = json.dumps(found).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield kept, f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()


def by_mmc(program: Program, inputs: dict[str, Any]) -> Any:
    settings = RunSettings("run", 0, 0, 0.0, score=False)
    engines = open_engines(program.loaded)
    (run,) = run_all(program, engines, [Example("run", inputs)], settings)
    for engine in engines.values():
        engine.close()
    assert run.ending == "done", run.error
    return run.outputs


def by_file(folder: Path, inputs: dict[str, Any]) -> Any:
    """Runs the file where no mmc can be imported."""
    blocked = folder.parent / "blocked"
    (blocked / "mmc").mkdir(parents=True, exist_ok=True)
    (blocked / "mmc/__init__.py").write_text("raise ImportError('there is no mmc here')")
    options = [f"--{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in inputs.items()]
    command = [sys.executable, "program.py", *options]
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(blocked)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def without_seed(bodies: list[bytes]) -> list[bytes]:
    """The bodies less the seed of each call, which mmc tells and which at temperature 0 decides nothing."""
    return [re.sub(rb', "seed": \d+', b"", body) for body in bodies]


def compare(spec: Path, models: list[str], examples: list[dict[str, Any]], stub: tuple[Stub, str], out: Path) -> str:
    """Runs a spec both ways with its models at the stub; gives the file."""
    kept, address = stub
    model = f"{{type: openai, model: small, api_base: '{address}', structured: vllm, cache: false}}"
    program = Program.build(load(spec, [f"models.{name}={model}" for name in models]), trust=True)
    folder = export("python", ExportJob(program, out))
    for inputs in examples:
        kept.bodies.clear()
        wanted, asked = by_mmc(program, inputs), without_seed(kept.bodies)
        kept.bodies.clear()
        assert by_file(folder, inputs) == json.loads(json.dumps(wanted))
        assert kept.bodies == asked and asked
    source = (folder / "program.py").read_text()
    lint = [sys.executable, "-m", "ruff", "check", "--isolated", "--select", "F,E9,B", str(folder / "program.py")]
    assert subprocess.run(lint, capture_output=True).returncode == 0
    assert "import mmc" not in source and "from mmc" not in source
    return source


def test_the_helpdesk(stub: tuple[Stub, str], tmp_path: Path) -> None:
    questions = [{"question": "How do I pay an Invoice?"}, {"question": "My “Wi‑Fi” is {{ slow }}\nand {% odd %}"}]
    source = compare(REPO / "specs/helpdesk.yaml", ["policy"], questions, stub, tmp_path / "out")
    assert "    pick_article = ask_pick_article(question=question, hits=hits)\n" in source
    assert '# dependencies = [\n#     "httpx",\n#     "jinja2",\n#     "bm25s"' in source


def test_a_build_asks_for_its_adapters_as_vllms_server_names_them(build: Path, tmp_path: Path) -> None:
    out = export("python", ExportJob(Program.build(load(build)), tmp_path / "out"))
    source = (out / "program.py").read_text()
    for module in ("query", "pick"):
        place = (
            f"os.environ.get('POLICY_URL', 'http://localhost:8000/v1'), os.environ.get('POLICY_KEY', ''), {module!r}"
        )
        assert f"    {module!r}: ({place}),\n" in source
    assert (out / "templates/query.j2").read_text() == (build / "templates/query.j2").read_text()


HOPS = """\
mmc: 1
name: hops
models: {policy: {type: local, source: "path:nowhere"}}
tools:
  search: {type: bm25, corpus: docs.jsonl, k: 4}
  count: {type: python, function: "more:count"}
modules:
  write_names:
    model: policy
    template: names.j2
    inputs: {claim: str, document: object}
    outputs: {names: str}
  judge:
    model: policy
    template: judge.j2
    inputs: {claim: str, known: "list[str]"}
    outputs: {words: "list[str]", count: int, sure: bool}
    constrain: true
program:
  inputs: {claim: str, turns: int}
  steps:
    - tool: search
      with: {query: "{{ claim }}"}
      as: hits
    - set: {documents: "{{ hits[:2] }}", class: "{{ claim | upper }}", list: [1, "{{ turns }}"]}
    - for: {turn: "{{ range(2) }}"}
      steps:
        - call: write_names
          with: {document: "{{ documents[turn] }}"}
        - for: {name: "{{ (write_names.names.split(',') | map('trim') | select | unique | list)[:3] }}"}
          steps:
            - tool: search
              with: {query: "{{ claim }} {{ name }} {{ name }}"}
              as: hits
            - set: {known: "{{ documents | map(attribute='title') | list }}"}
            - set: {documents: "{{ documents + (hits | rejectattr('title', 'in', known) | list)[:1] }}"}
    - set: {n: 0}
    - repeat: 3
      until: "{{ n >= turns }}"
      steps:
        - set: {n: "{{ n + 1 }}"}
        - tool: count
          with: {items: "{{ documents }}", class_: "{{ class }}"}
        - if: "{{ count.many }}"
          steps:
            - call: judge
              with: {known: "{{ documents | map(attribute='title') | list }}"}
              as: verdict
            - if: "{{ verdict.sure and n == turns }}"
              steps:
                - set: {titles: "{{ documents | map(attribute='title') | list }}"}
                - return: {titles: "{{ titles }}", words: "{{ verdict.words }}", list: "{{ list }}"}
          else:
            - set: {verdict: {sure: "no"}}
  outputs: {titles: [], words: "{{ verdict.sure }}", list: "{{ list }} of {{ class }}"}
"""


def test_loops_branches_tools_and_typed_outputs(stub: tuple[Stub, str], tmp_path: Path) -> None:
    home = tmp_path / "hops"
    home.mkdir()
    (home / "hops.yaml").write_text(HOPS)
    (home / "names.j2").write_text(
        "{% system %}\n{% slot instruction %}\nList names.\n{% endslot %}\n{% endsystem %}\n{% user %}\n"
        "Claim: {{ claim }}\n{{ document.title }}: {{ document.text[:40] }}\nNames:\n{% enduser %}\n"
    )
    (home / "judge.j2").write_text("{{ claim }}\n{% for one in known %}\n- {{ one }}\n{% endfor %}\n")
    (home / "more.py").write_text(
        "async def count(items, class_):\n    return {'n': len(items), 'many': 'yes' if len(items) > 2 else 'no'}\n"
    )
    kinds = ["Ant", "Bee", "Cat", "Dog", "Elk", "Fox"]
    docs = [
        {"title": kind, "text": f"The {kind} met the {kinds[i - 1]} and the {kinds[i - 2]}."}
        for i, kind in enumerate(kinds)
    ]
    (home / "docs.jsonl").write_text("".join(json.dumps(doc) + "\n" for doc in docs))
    examples: list[dict[str, Any]] = [
        {"claim": "Who met the Bee and Fox?", "turns": 1},
        {"claim": "the Dog, the Elk", "turns": 2},
        {"claim": 'the Cat\'s "friend" or Ant', "turns": 9},
    ]
    source = compare(home / "hops.yaml", ["policy"], examples, stub, tmp_path / "out")
    assert (
        "    for turn in range(2):\n        write_names = ask_write_names(claim=claim, document=documents[turn])\n"
        in source
    )
    assert "if n >= turns:\n            break\n" in source


NAMES = """\
mmc: 1
name: names
models: {policy: {type: local, source: "path:nowhere"}}
tools: {more: {type: python, function: "words:more"}}
modules:
  class:
    model: policy
    template: t.j2
    inputs: {class: str, text: str, messages: str}
    outputs: {list: str}
program:
  inputs: {class: str, json: str}
  steps:
    - call: class
      with: {text: "{{ json }}", messages: "it's \\"{{ json }}\\" in {braces}"}
      as: in
    - tool: more
      with: {class: "{{ in.list }}", render: "{{ class }}"}
      as: index_more
    - set: {len: "{{ in['list'] ~ '!' }}"}
  outputs: {a: "{{ index_more }}", b: "{{ in.list }}", c: "{{ len }}"}
"""


def test_names_that_mean_something_in_python(stub: tuple[Stub, str], tmp_path: Path) -> None:
    home = tmp_path / "names"
    home.mkdir()
    (home / "names.yaml").write_text(NAMES)
    (home / "t.j2").write_text("{{ class }} {{ text }} {{ messages }}")
    (home / "words.py").write_text("def more(**words):\n    return sorted(words.items())\n")
    compare(home / "names.yaml", ["policy"], [{"class": "A Bear", "json": "Cat"}], stub, tmp_path / "out")


@pytest.mark.parametrize("name", ["hover", "papillon", "banking77", "banking77_retrieval"])
def test_the_other_shipped_programs(name: str, stub: tuple[Stub, str], tmp_path: Path) -> None:
    import os

    if "MMC_DATA" not in os.environ:
        pytest.skip("needs the public data sets")
    spec = load(REPO / f"specs/{name}.yaml").spec
    said = "The band Northern Glass recorded an album in Leith; how do I activate my card?"
    compare(
        REPO / f"specs/{name}.yaml",
        list(spec.models),
        [dict.fromkeys(spec.program.inputs, said)],
        stub,
        tmp_path / "out",
    )


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ('type: python, function: "more:count"', 'type: http, url: "http://localhost/"', "tools.count.*`type: http`"),
        ("    - set: {n: 0}", "    - parallel: [[{set: {n: 0}}], [{set: {m: 1}}]]", "no `parallel` steps"),
        ("    outputs: {names: str}", "    outputs: {names: str}\n    format: sections", "`format: sections`"),
        ("{{ n + 1 }}", "{{ n | default(0) + 1 }}", "whether a variable is set"),
    ],
)
def test_what_cannot_be_expressed_is_refused(old: str, new: str, expected: str, tmp_path: Path) -> None:
    (tmp_path / "names.j2").write_text("{{ claim }} {{ document }}")
    (tmp_path / "judge.j2").write_text("{{ claim }} {{ known }}")
    (tmp_path / "more.py").write_text("def count(items, class_):\n    return {'many': True}\n")
    (tmp_path / "docs.jsonl").write_text('{"title": "a", "text": "b"}\n')
    assert old in HOPS
    (tmp_path / "hops.yaml").write_text(HOPS.replace(old, new))
    with pytest.raises(UsageError, match=expected):
        export("python", ExportJob(Program.build(load(tmp_path / "hops.yaml"), trust=True), tmp_path / "out"))
    assert not (tmp_path / "out").exists()
