"""A two-module program in a folder, small enough to compile in seconds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

SPEC = """\
mmc: 1  # the version
name: tiny
models:
  policy: {type: local, source: "path:SOURCE"}
tools:
  search: {type: bm25, corpus: docs.jsonl, k: 3}
modules:
  query:
    model: policy
    template: query.j2
    inputs: {question: str}
    outputs: {query: str}
    max_tokens: 4
    candidates: {instruction: [Write words., Say it.]}
  pick:
    model: policy
    template: pick.j2
    inputs: {question: str, hits: list}
    outputs: {title: {enum: "{{ hits | map(attribute='title') | list }}"}}
    constrain: true
    max_tokens: 12
program:
  inputs: {question: str}
  steps:
    - call: query
    - tool: search
      with: {query: "{{ question }} {{ query.query }}"}
      as: hits
    - call: pick
  outputs: {title: "{{ pick.title }}"}
data:
  train: {file: rows.jsonl, part: [0.0, 0.4]}
  dev: {file: rows.jsonl, part: [0.4, 0.7]}
  test: {file: rows.jsonl, part: [0.7, 1.0]}
metric: {type: exact, predicted: title, gold: title}
compile:
  strategy: [prompts, weights]
  gate: false
  prompts: {trials: 2, demos: 1, examples: 4, bootstrap: 4}
  weights: {steps: 4, examples: 4, rollouts: 4, learning_rate: 0.01}
"""


@pytest.fixture
def folder(tmp_path: Path, tiny_model_dir: Path) -> Path:
    write_program(tmp_path, tiny_model_dir)
    return tmp_path


def write_program(folder: Path, model: Path) -> None:
    """Writes the program and its data into ``folder``."""
    (folder / "spec.yaml").write_text(SPEC.replace("SOURCE", str(model)))
    (folder / "query.j2").write_text("{% user %}{% slot instruction %}Write.{% endslot %} {{ question }}{% enduser %}")
    (folder / "pick.j2").write_text(
        "{% slot demos %}\n{% endslot %}\n{% user %}{{ question }} {{ hits[0].title }}{% enduser %}"
    )
    kinds = ["ant", "bee", "cat"]
    docs = [{"title": kind, "text": f"animal {kind}"} for kind in kinds]
    (folder / "docs.jsonl").write_text("".join(json.dumps(d) + "\n" for d in docs))
    rows = [{"question": f"which animal {i}", "title": kinds[i % 3]} for i in range(20)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
