"""Exports of a build: what is in them, that others can load it, and what is said when they cannot be made."""

from __future__ import annotations

import json
import os
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
from mmc.errors import InvalidError, UsageError
from mmc.program.check import check
from mmc.program.graph import Program
from mmc.program.run import RunSettings, run_all
from mmc.spec import load


def job(build: Path, out: Path, examples: int = 3) -> ExportJob:
    return ExportJob(Program.build(load(build)), out, examples)


def completions(folder: Path) -> list[str]:
    """What the program's modules say about one example."""
    program = Program.build(load(folder))
    settings = RunSettings("run", 0, 0, 0.0, score=False)
    run = run_all(program, open_engines(program.loaded), [Example("x", {"question": "which animal 3"})], settings)[0]
    assert run.ending == "done"
    return [call.completion.text for call in run.calls]


def test_merged_models_load_in_transformers_and_are_the_adapted_ones(build: Path, tmp_path: Path) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    out = export("merged", job(build, tmp_path / "out"))
    assert sorted(path.name for path in out.iterdir()) == ["pick", "query"]
    base = Program.build(load(build)).spec.models["policy"].source.removeprefix("path:")  # type: ignore[union-attr]
    ids = AutoTokenizer.from_pretrained(out / "pick")("hello there", return_tensors="pt")["input_ids"]
    base_dir = (build / base).resolve()
    for name in ("pick", "query"):
        merged = AutoModelForCausalLM.from_pretrained(out / name)(ids).logits
        plain = AutoModelForCausalLM.from_pretrained(base_dir)
        before = plain(ids).logits
        adapted = PeftModel.from_pretrained(plain, str(build / "adapters" / name))(ids).logits
        assert torch.allclose(merged, adapted, atol=1e-4) and not torch.allclose(merged, before, atol=1e-3)


def test_vllms_folder_names_adapters_by_module_and_knows_the_answers(build: Path, tmp_path: Path) -> None:
    out = export("vllm", job(build, tmp_path / "out"))
    rows = [json.loads(line) for line in (out / "requests.jsonl").read_text().splitlines()]
    assert [row["module"] for row in rows] == ["query", "pick"] * 3
    assert all(row["body"]["model"] == row["module"] and row["body"]["temperature"] == 0 for row in rows)
    picks = rows[1::2]
    assert all(row["expected"] in row["body"]["structured_outputs"]["choice"] for row in picks)
    script = out / "serve.sh"
    assert os.access(script, os.X_OK)
    # A python that prints what it is called with stands for vLLM here; the real one is asked in a slow test.
    (tmp_path / "python").write_text('#!/bin/sh\nfor word in "$@"; do echo "$word"; done\n')
    (tmp_path / "python").chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "DTYPE": "float32"}
    words = subprocess.run(
        [str(script), "--more"], env=environment, capture_output=True, text=True, check=True
    ).stdout.split()
    assert words[-4:] == ["--lora-modules", "query=adapters/query", "pick=adapters/pick", "--more"]
    assert words[words.index("--dtype") + 1] == "float32" and words[words.index("--max-lora-rank") + 1] == "16"
    assert (Path(words[words.index("--model") + 1]) / "config.json").is_file()


class Answers(BaseHTTPRequestHandler):
    """Serves models, and for every request the text under its last message."""

    texts: dict[str, str] = {}

    def do_GET(self) -> None:
        self._send({"data": [{"id": "query"}, {"id": "pick"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = self.texts[json.dumps([body["model"], body["messages"]])]
        self._send({"choices": [{"message": {"content": text}}]})

    def _send(self, document: Any) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(document).encode())

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def answering() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_the_smoke_test_tells_equal_answers_from_others(build: Path, tmp_path: Path, answering: str) -> None:
    out = export("vllm", job(build, tmp_path / "out"))
    rows = [json.loads(line) for line in (out / "requests.jsonl").read_text().splitlines()]
    Answers.texts = {json.dumps([r["body"]["model"], r["body"]["messages"]]): r["expected"] for r in rows}
    command = [sys.executable, str(out / "smoke.py"), "--address", answering]
    good = subprocess.run(command, capture_output=True, text=True, check=False)
    assert good.returncode == 0 and good.stdout == "6 of 6 answers are equal\n"
    Answers.texts = dict.fromkeys(Answers.texts, "something else")
    bad = subprocess.run(command, capture_output=True, text=True, check=False)
    assert bad.returncode == 1 and "vLLM 'something else'" in bad.stdout


def test_a_hubs_folder_runs_far_from_home(build: Path, tmp_path: Path) -> None:
    out = export("hub", job(build, tmp_path / "out"))
    far = out.rename(tmp_path / "far")
    assert not [one for one in check(load(far)) if one.severity == "error"]
    assert load(far).spec.data is None and not (far / "report.html").exists()
    assert (far / "files/search-docs.jsonl").is_file()
    assert completions(far) == completions(build)
    card = (far / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: peft\n") and "| weights | 0." in card and "--input question=" in card
    from huggingface_hub import RepoCard

    assert RepoCard(card).data.tags == ["mmc", "lora"]


def test_what_cannot_be_exported_is_said(build: Path, tmp_path: Path) -> None:
    source = build.parents[2]
    with pytest.raises(UsageError, match="nothing to merge"):
        export("merged", job(source / "spec.yaml", tmp_path / "a"))
    with pytest.raises(InvalidError, match="this is no build folder"):
        export("hub", job(source / "spec.yaml", tmp_path / "b"))
    with pytest.raises(UsageError, match="there are vllm, merged, hub"):
        export("onnx", job(build, tmp_path / "c"))
    (tmp_path / "d").mkdir()
    with pytest.raises(UsageError, match="is there already"):
        export("hub", job(build, tmp_path / "d"))
    assert [path.name for path in tmp_path.iterdir()] == ["d"]


PUSHES = """
import os
from pathlib import Path
from mmc.build.export import push
from mmc.errors import EnvironmentProblem

for repo, environment in (
    ("me/x", {}),
    ("me/x", {"HF_TOKEN": "hf_x"}),
    ("a/b/c", {}),
    ("me/x", {"HF_HUB_OFFLINE": "1"}),
):
    os.environ.update(environment)
    try:
        push(Path("."), repo)
    except EnvironmentProblem as problem:
        print(problem)
"""


def test_pushing_ends_at_the_door_with_a_reason(tmp_path: Path) -> None:
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "http://127.0.0.1:9"}
    environment.pop("HF_TOKEN", None)
    command = [sys.executable, "-c", PUSHES]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    without_token, refused, misnamed, offline = done.stdout.splitlines()
    assert "HF_HUB_OFFLINE is set" in offline and "there is no token: hf auth login" in without_token
    assert "the hub gave: [Errno 111] Connection refused" in refused
    assert "'a/b/c' cannot be a repository" in misnamed
