"""Golden messages of static problems."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmc.program.check import check
from mmc.spec import load

GOOD = """\
mmc: 1
name: demo
models:
  policy: {type: local, source: "path:model"}
tools:
  search: {type: bm25, corpus: corpus.jsonl}
modules:
  query:
    model: policy
    template: query.j2
    inputs: {question: str}
    outputs: {query: str}
  pick:
    model: policy
    template: pick.j2
    inputs: {question: str, hits: list}
    outputs: {title: {enum: "{{ hits | map(attribute='title') | list }}"}}
program:
  inputs: {question: str}
  steps:
    - call: query
    - tool: search
      with: {query: "{{ query.query }}"}
      as: hits
    - call: pick
  outputs: {title: "{{ pick.title }}"}
data:
  train: {file: rows.jsonl}
  dev: {file: dev.jsonl}
  test: {file: test.jsonl}
metric: {type: exact, predicted: title, gold: title}
"""

METRIC = "{type: exact, predicted: title, gold: title}"


def messages(tmp_path: Path, old: str, new: str, pick: str = "{{ question }}") -> str:
    (tmp_path / "query.j2").write_text("{% slot instruction %}Q{% endslot %} {{ question }}")
    (tmp_path / "pick.j2").write_text(pick)
    (tmp_path / "corpus.jsonl").write_text('{"title": "a", "text": "b"}\n')
    for split in ("rows", "dev", "test"):
        (tmp_path / f"{split}.jsonl").write_text('{"question": "a", "title": "b"}\n')
    assert old in GOOD
    path = tmp_path / "spec.yaml"
    path.write_text(GOOD.replace(old, new, 1))
    return "\n".join(d.render() for d in check(load(path))).replace(f"{tmp_path}/", "")


def test_a_good_spec_has_no_problem(tmp_path: Path) -> None:
    assert messages(tmp_path, "mmc: 1", "mmc: 1") == ""


BROKEN = [
    ("model: policy\n    template: query", "model: polcy\n    template: query",
     "spec.yaml:9:12: error: there is no model 'polcy'. Did you mean 'policy'?"),
    ("- call: query", "- call: qery", "spec.yaml:21:13: error: there is no module 'qery'. Did you mean 'query'?"),
    ("- tool: search", "- tool: serch", "spec.yaml:22:13: error: there is no tool 'serch'. Did you mean 'search'?"),
    ("template: query.j2", "template: qury.j2",
     "spec.yaml:10:15: error: qury.j2: there is no such template. Did you mean 'query.j2'?"),
    ("question: str}\n    outputs: {query", "question: strr}\n    outputs: {query",
     "error: 'strr' is not a type; known are str, int, float, bool, object, any and list[...] Did you mean 'str'?"),
    ("{{ query.query }}", "{{ qery.query }}", "spec.yaml:23:21: error: nothing makes 'qery'. Did you mean 'query'?"),
    ("{{ query.query }}", "{{ pick.title }}", "the steps need each other in a cycle: "),
    ("{{ query.query }}", "{{ query.query | }}", "spec.yaml:23:21: error: not a valid expression"),
    ("as: hits", "as: found", "'hits'"),
    ("    - call: pick\n", "    - call: pick\n      with: {quest: 1}\n",
     "the module 'pick' has no input 'quest'. Did you mean 'question'?"),
    ("{{ hits | map", "{{ hitz | map", "error: 'hitz' is not an input of this module. Did you mean 'hits'?"),
    ("predicted: title", "predicted: titel", "error: the program has no output 'titel'. Did you mean 'title'?"),
    ("gold: title", "gold: titles", "error: rows.jsonl has no column 'titles'. Did you mean 'title'?"),
    ("train: {file: rows.jsonl}", "train: {file: rows2.jsonl}", "spec.yaml:28:17: error: rows2.jsonl: there is no such file"),
    ("test: {file: test.jsonl}", "test: {file: test.jsonl, part: [0.5, 0.2]}", "a part is [from, to] with 0 <= from < to <= 1"),
    ("test: {file: test.jsonl}", "test: {file: test.jsonl, id: uid}", "test.jsonl has no column 'uid'"),
    ("corpus: corpus.jsonl", "corpus: corpus.jsonl, fields: [title, body]", "corpus.jsonl has no column 'body'"),
    ("outputs: {query: str}", "outputs: {query: str}\n    candidates: {instructions: [x]}",
     "error: the template has no slot 'instructions'; it has: instruction. Did you mean 'instruction'?"),
    ("outputs: {query: str}", "outputs: {query: {enum: [one]}}", "an enum needs two or more different texts"),
    ("outputs: {query: str}", "outputs: {query: {enum: nowhere.json}}", "nowhere.json: there is no such file"),
    ("mmc: 1", "mmc: 1\nshaping: {qery: []}", "error: there is no module 'qery'. Did you mean 'query'?"),
    ("mmc: 1", "mmc: 1\nshaping: {pick: [{name: x, weight: 1, metric: {type: exact, predicted: titel, gold: title}}]}",
     "error: there is no output or input of pick 'titel'. Did you mean 'title'?"),
    ("mmc: 1", "mmc: 1\nshaping: {pick: [{name: x, weight: 1, metric: {type: exact, predicted: title, gold: titles}}]}",
     "error: rows.jsonl has no column 'titles'. Did you mean 'title'?"),
    ("test: {file: test.jsonl}", "test: {file: test.jsonl, unique: [titel]}", "test.jsonl has no column 'titel'"),
    (METRIC, "{type: judge, module: grad}", "spec.yaml:31:31: error: there is no module 'grad'"),
    (METRIC, "{type: judge, module: query}", "the program calls 'query' itself; a judge is a module of its own"),
    (METRIC, "{type: judge, module: query, with: {quest: x}}", "there is no input of query 'quest'. Did you mean 'question'?"),
    (METRIC, "{type: judge, module: query, output: verdict}", "there is no output of query 'verdict'"),
    (METRIC, "{type: judge, module: query, with: {question: '{{ titel }}'}}", "rows.jsonl has no column 'titel'"),
    ("mmc: 1", "mmc: 1\nshaping: {pick: [{name: x, weight: 1, metric: {type: judge, module: query}}]}",
     "a judge scores whole runs; shaping takes other metrics"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "expected"), BROKEN)
def test_a_static_problem_is_found_and_placed(tmp_path: Path, old: str, new: str, expected: str) -> None:
    assert expected in messages(tmp_path, old, new)


def test_a_template_that_names_an_undeclared_input_says_file_line_and_column(tmp_path: Path) -> None:
    found = messages(tmp_path, "mmc: 1", "mmc: 1", pick="{{ question }}\n{{ hit.title }}")
    assert found.startswith("pick.j2:2:4: error: the template uses 'hit', which is not an input of the module 'pick'")
    assert "Did you mean 'hits'?" in found


def test_an_unused_input_is_a_warning(tmp_path: Path) -> None:
    assert "spec.yaml:16:14: warning: the template pick.j2 does not use this input" in messages(
        tmp_path, "mmc: 1", "mmc: 1", "x"
    )
