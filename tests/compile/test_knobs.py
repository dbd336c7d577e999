"""Knobs: values of the spec that a search turns together with the prompts, from the check to the build."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean

import pytest

from mmc.build.diff import diff
from mmc.compile import CompileJob, CompileResult, compile_spec
from mmc.errors import InvalidError
from mmc.program.check import check
from mmc.program.graph import Program
from mmc.search import SearchJob, SearchResult, search
from mmc.search.demos import Found
from mmc.search.space import Space, make_space
from mmc.spec import load
from mmc.tool.bm25 import Bm25

SPEC = """\
mmc: 1
name: knobs
models:
  policy: {type: local, source: "path:SOURCE"}
  other: {type: local, source: "path:SOURCE"}
tools:
  search: {type: bm25, corpus: docs.jsonl, k: 1}  # too few
modules:
  note: {model: policy, template: note.j2, inputs: {question: str}, outputs: {text: str}, max_tokens: 2}
program:
  inputs: {question: str}
  steps:
    - call: note
    - set: {titles: []}
    - repeat: 1
      steps:
        - tool: search
          with: {query: "{{ question }}"}
          as: hits
        - set: {titles: "{{ titles + (hits | map(attribute='title') | list) }}"}
  outputs: {titles: "{{ titles }}"}
data:
  train: {file: rows.jsonl, part: [0.0, 0.2]}
  dev: {file: rows.jsonl, part: [0.2, 0.7]}
  test: {file: rows.jsonl, part: [0.7, 1.0]}
metric: {type: recall, predicted: titles, gold: titles}
compile:
  strategy: [prompts]
  prompts: {algorithm: halving, trials: 4, demos: 0, examples: 15, knobs: {tools.search.k: [2, 3]}}
"""


@pytest.fixture
def folder(tmp_path: Path, tiny_model_dir: Path) -> Path:
    """All documents match a question equally, so a search finds the first k."""
    (tmp_path / "spec.yaml").write_text(SPEC.replace("SOURCE", str(tiny_model_dir)))
    (tmp_path / "note.j2").write_text("{% user %}{{ question }}{% enduser %}")
    kinds = ["ant", "bee", "cat"]
    docs = [{"title": kind, "text": "an animal"} for kind in kinds]
    (tmp_path / "docs.jsonl").write_text("".join(json.dumps(d) + "\n" for d in docs))
    rows = [{"question": f"animal {i}", "titles": [kinds[i % 3]]} for i in range(60)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return tmp_path


def compiled(folder: Path, *overrides: str) -> CompileResult:
    return compile_spec(CompileJob(load(folder / "spec.yaml", overrides), folder / "build", folder / "runs"))


def space(folder: Path, **knobs: list[object]) -> Space:
    program = Program.build(load(folder / "spec.yaml"))
    return make_space(program, Found((), {}), 0, 0, knobs={key.replace("__", "."): v for key, v in knobs.items()})[0]


def test_the_best_value_stands_in_the_build(folder: Path) -> None:
    result = compiled(folder)
    start, prompts = result.stages
    assert fmean(start.scores) == pytest.approx(1 / 3) and fmean(prompts.scores) == 1.0
    assert "replaced the start with tools.search.k 3" in prompts.note
    built = (result.build / "program.yaml").read_text()
    assert "k: 3}  # too few" in built
    assert load(result.build).spec.origin.parent == load(folder / "spec.yaml").sha256  # type: ignore[union-attr]
    lock = json.loads((result.build / "mmc.lock").read_text())
    assert lock["spec"] == load(folder / "spec.yaml").sha256
    assert Program.build(load(result.build)).spec.tools["search"].k == 3  # type: ignore[union-attr]


def test_the_value_goes_on_into_the_next_stage_and_a_resumed_compile(folder: Path) -> None:
    weights = ["compile.strategy=[prompts, weights]", "compile.gate=false", "compile.weights.steps=1"]
    few = [*weights, "compile.weights.examples=2", "compile.weights.rollouts=2"]
    first = compiled(folder, *few)
    assert fmean(first.stages[-1].scores) == 1.0
    again = compiled(folder, *few)
    assert (again.build / "program.yaml").read_text() == (first.build / "program.yaml").read_text()


@pytest.mark.parametrize("algorithm", ["halving", "mipro"])
def test_strategies_turn_knobs_of_tools_and_steps_together(folder: Path, algorithm: str) -> None:
    found = searched(folder, algorithm, "{tools.search.k: [2], program.steps.2.repeat: [2]}")
    assert found.replaced
    assert found.program.settings["tools.search.k"] == 2
    tried = {trial.what for trial in found.trials}
    assert {"tools.search.k 2", "program.steps.2.repeat 2", "tools.search.k 2; program.steps.2.repeat 2"} <= tried


def searched(folder: Path, algorithm: str, knobs: str) -> SearchResult:
    from mmc.data import load_split
    from mmc.engine import open_engines

    sizes = "trials: 8, minibatch: 10, examples: 30" if algorithm == "mipro" else "trials: 3, examples: 30"
    block = f"{{algorithm: {algorithm}, demos: 0, {sizes}, knobs: {knobs}}}"
    loaded = load(folder / "spec.yaml", [f"compile.prompts={block}"])
    program = Program.build(loaded)
    train, dev = load_split(loaded, "train"), load_split(loaded, "dev")
    return search(SearchJob(program, open_engines(loaded), train, dev, loaded.spec.compile.prompts, 0, folder / "s"))


def test_an_index_is_made_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    init = Bm25.__init__
    monkeypatch.setattr(
        Bm25, "__init__", lambda self, rows, fields, k: (made.append(k), init(self, rows, fields, k))[1]
    )
    whole = space(folder, tools__search__k=[1, 2, 3, 2])
    assert whole.size == 3, "what stands there, and a value that is named twice, count once"
    programs = [whole.build(candidate) for candidate in (whole.start, *whole.draw(0))]
    assert sorted(len(p.tools["search"].search("animal")) for p in programs) == [1, 2, 3]  # type: ignore[union-attr]
    assert made == [3]


def test_a_module_may_run_on_another_model(folder: Path) -> None:
    whole = space(folder, modules__note__model=["other"])
    (other,) = (whole.build(candidate) for candidate in whole.draw(0))
    assert isinstance(other, Program) and other.spec.modules["note"].model == "other"
    result = compiled(folder, "compile.prompts.knobs={modules.note.model: [other]}")
    assert "the start is kept" in result.stages[-1].note


def test_a_build_differs_by_the_knob(folder: Path) -> None:
    found = diff(folder / "spec.yaml", compiled(folder).build)
    assert "tools.search.k" in str(found)


@pytest.mark.parametrize(
    ("knobs", "place", "words"),
    [
        ("{metric.type: [exact]}", "metric.type", "metric.type cannot be a knob"),
        ("{modules.note.template: [a.j2]}", "modules.note.template", "cannot be a knob"),
        ("{tools.search.kk: [1]}", "tools.search.kk", "there is no key tools.search.kk"),
        ("{tools.search.k: [2, -1]}", "-1", "tools.search.k cannot have this value: "),
        ("{modules.note.model: [olter]}", "olter", "there is no model 'olter'. Did you mean 'other'?"),
    ],
)
def test_a_wrong_knob_is_an_error_at_its_place(folder: Path, knobs: str, place: str, words: str) -> None:
    text = (folder / "spec.yaml").read_text().replace("{tools.search.k: [2, 3]}", knobs)
    (folder / "spec.yaml").write_text(text)
    (problem,) = (found for found in check(load(folder / "spec.yaml")) if found.severity == "error")
    assert words in problem.message
    line = text.splitlines()[problem.line - 1]
    assert line[problem.column - 1 :].startswith(place)
    with pytest.raises(InvalidError):
        Program.build(load(folder / "spec.yaml"))


def test_a_model_that_a_knob_may_choose_is_used(folder: Path) -> None:
    chosen = load(folder / "spec.yaml", ["compile.prompts.knobs={modules.note.model: [other]}"])
    assert [found.message for found in check(chosen)] == []
    assert [found.message for found in check(load(folder / "spec.yaml"))] == ["nothing uses the model 'other'"]
