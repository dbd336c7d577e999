"""Whole compiles with a tiny random model: the line from spec to build, interrupted and resumed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mmc.compile import CompileJob, CompileResult, compile_spec, run_matrix
from mmc.compile.progress import Silent
from mmc.compile.record import changed_keys
from mmc.compile.stages import STAGES
from mmc.errors import UsageError
from mmc.program.graph import Program
from mmc.spec import load


def compiled(folder: Path, *overrides: str, out: str = "build") -> CompileResult:
    return compile_spec(CompileJob(load(folder / "spec.yaml", overrides), folder / out, folder / "runs"))


def adapter(build: Path) -> bytes:
    return (build / "adapters/shared/adapter_model.safetensors").read_bytes()


def test_a_compile_leaves_a_build_that_runs_and_compiles_again(folder: Path) -> None:
    result = compiled(folder)
    build = result.build
    assert [s.stage for s in result.stages] == ["start", "prompts", "weights"]
    assert build == folder / "build/tiny/v1"
    names = {str(p.relative_to(build)) for p in build.rglob("*") if p.is_file()}
    assert names == {
        "program.yaml",
        "templates/query.j2",
        "templates/pick.j2",
        "adapters/shared/adapter_config.json",
        "adapters/shared/adapter_model.safetensors",
        "adapters/shared/README.md",
        "mmc.lock",
        "manifest.json",
        "scores.json",
        "report.html",
    }
    text = (build / "program.yaml").read_text()
    assert text.startswith("mmc: 1  # the version\n"), "comments stay"
    again = load(build)
    assert again.spec.origin is not None and again.spec.origin.parent == load(folder / "spec.yaml").sha256
    assert again.spec.adapters == {"query": "adapters/shared", "pick": "adapters/shared"}
    manifest, lock = (json.loads((build / name).read_text()) for name in ("manifest.json", "mmc.lock"))
    assert [s["stage"] for s in manifest["stages"]] == ["start", "prompts", "weights"]
    assert manifest["stages"][0]["to_start"] == {"mean": 0.0, "low": 0.0, "high": 0.0}
    assert lock["data"]["train"]["rows"] == 8 and lock["models"]["policy"]["source"].startswith("path:")
    second = compile_spec(CompileJob(load(build, ["compile.strategy=[weights]"]), folder / "second", folder / "runs"))
    assert second.stages[0].scores == result.stages[-1].scores, "the build starts where the compile ended"


def test_a_build_finds_the_teachers_of_its_spec(folder: Path) -> None:
    (folder / "other.yaml").write_text((folder / "spec.yaml").read_text())
    teachers = "[{templates: {query: query.j2}}, {spec: other.yaml}]"
    result = compiled(folder, "compile.strategy=[]", f"compile.distill.teachers={teachers}")
    again = load(result.build)
    first, second = again.spec.compile.distill.teachers
    assert again.resolve(first.templates["query"]) == folder / "query.j2"
    assert second.spec is not None and again.resolve(second.spec) == folder / "other.yaml"
    Program.build(again)


def test_whole_weights_that_were_tuned_are_in_the_build(folder: Path) -> None:
    whole = ["compile.weights.full=true", "compile.weights.learning_rate=1e-3"]
    result = compiled(folder, "compile.strategy=[distill, weights]", "compile.distill.full=true", *whole)
    kept = result.build / "adapters/shared"
    assert (kept / "model.safetensors").exists() and (kept / "tokenizer.json").exists()
    assert not (kept / "adapter_config.json").exists()
    assert "library_name: transformers" in (kept / "README.md").read_text()
    again = compile_spec(CompileJob(load(result.build, ["compile.strategy=[]"]), folder / "second", folder / "runs"))
    assert again.stages[0].scores == result.stages[-1].scores, "the build runs with them"


def test_the_report_holds_no_script_and_no_address(folder: Path) -> None:
    rows = (folder / "rows.jsonl").read_text().replace("which animal 19", "<script>alert(1)</script>")
    (folder / "rows.jsonl").write_text(rows)
    page = (compiled(folder).build / "report.html").read_text()
    assert "<script>alert" not in page and "&lt;script&gt;alert" in page
    assert "://" not in page and "src=" not in page and "polyline" in page


def test_a_second_compile_reuses_everything_and_gives_the_same(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = compiled(folder)
    from mmc.compile import state

    def never(*_: Any) -> None:
        raise AssertionError("nothing is scored again")

    monkeypatch.setattr(state, "_evaluate", never)
    second = compiled(folder)
    assert second.build.name == "v2" and adapter(second.build) == adapter(first.build)
    assert (second.build / "manifest.json").read_text().replace('"v2"', '"v1"') == (
        first.build / "manifest.json"
    ).read_text()


class _Killed(BaseException):
    """As an interrupt is: no failure of the stage."""


class _Kill(Silent):
    """Progress that stops the compile at the n-th sign of life."""

    def __init__(self, after: int) -> None:
        self.left = after

    def advance(self, done: int, detail: str = "", value: float | None = None) -> None:
        self.left -= 1
        if self.left == 0:
            raise _Killed


def test_interrupted_anywhere_it_resumes_to_the_same_bytes(folder: Path) -> None:
    whole = compiled(folder)
    shutil.rmtree(folder / "runs")
    interruptions = 0
    while True:
        # Runs of one step report a little at a time; each attempt must get further than the last.
        try:
            job = CompileJob(load(folder / "spec.yaml"), folder / "build", folder / "runs", progress=_Kill(8))
            resumed = compile_spec(job)
            break
        except BaseException as error:
            while isinstance(error, BaseExceptionGroup):
                error = error.exceptions[0]
            assert isinstance(error, _Killed), repr(error)
            interruptions += 1
            assert interruptions < 40
            assert {p.name for p in (folder / "build/tiny").iterdir()} == {"v1"}, "nothing half-written"
    assert interruptions > 2
    assert adapter(resumed.build) == adapter(whole.build)
    for name in ("program.yaml", "templates/query.j2", "templates/pick.j2"):
        assert (resumed.build / name).read_text() == (whole.build / name).read_text()
    assert [s.scores for s in resumed.stages] == [s.scores for s in whole.stages]


SHAPING = "shaping={query: [{name: short, weight: 1, metric: {type: contains, predicted: query, gold: title}}]}"


@pytest.mark.parametrize(
    ("changed", "key"), [("compile.weights.steps=5", "compile.weights.steps"), (SHAPING, "shaping.query")]
)
def test_a_changed_input_makes_later_stages_stale_alone(folder: Path, changed: str, key: str) -> None:
    said: list[str] = []

    class Listening(_Kill):
        def say(self, line: str) -> None:
            said.append(line)

    compiled(folder)
    loaded = load(folder / "spec.yaml", [changed])
    compile_spec(CompileJob(loaded, folder / "build", folder / "runs", progress=Listening(10**9)))
    assert [line for line in said if "starting over" in line] == [
        f"weights: starting over, because this changed: {key}"
    ]


def test_a_changed_corpus_or_included_file_is_noticed(folder: Path) -> None:
    from mmc.compile.state import State

    (folder / "pick.j2").write_text("{% user %}{% include 'part.j2' %}{{ question }} {{ hits[0].title }}{% enduser %}")
    (folder / "part.j2").write_text("Well: ")
    found = []
    for file, text in (("", ""), ("docs.jsonl", '{"title": "ant", "text": "an animal"}\n'), ("part.j2", "So: ")):
        if file:
            (folder / file).write_text(text)
        found.append(json.dumps(State(Program.build(load(folder / "spec.yaml"))).fingerprint(), sort_keys=True))
    assert len(set(found)) == 3
    result = compiled(folder, "compile.strategy=[]")
    assert (result.build / "templates/pick/part.j2").read_text() == "So: "
    assert Program.build(load(result.build)).templates["pick"].includes == {"part.j2": "So: "}


def test_a_stage_that_makes_dev_worse_is_rolled_back(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mmc.compile import pipeline

    real = pipeline.score

    def pessimistic(context: Any, state: Any, split: str, what: str) -> Any:
        found = real(context, state, split, what)
        if split == "dev":
            return replace(found, scores=tuple(0.0 if what.startswith("after") else 1.0 for _ in found.scores))
        return found

    monkeypatch.setattr(pipeline, "score", pessimistic)
    result = compiled(folder, "compile.gate=true", "compile.strategy=[weights]")
    assert not result.stages[1].kept and "rolled back" in result.stages[1].note
    assert not (result.build / "adapters").exists()
    assert result.stages[1].scores == result.stages[0].scores


def test_a_stage_that_fails_leaves_a_build_of_what_came_before(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: Any) -> Any:
        raise RuntimeError("the disk is gone")

    with monkeypatch.context() as patched:
        patched.setitem(STAGES, "weights", broken)  # type: ignore[arg-type]
        with pytest.raises(RuntimeError, match="the disk is gone"):
            compiled(folder)
    manifest = json.loads((folder / "build/tiny/v1/manifest.json").read_text())
    assert [s["stage"] for s in manifest["stages"]] == ["start", "prompts"]
    assert load(folder / "build/tiny/v1").spec.adapters == {}
    with monkeypatch.context() as patched:
        patched.setitem(STAGES, "prompts", broken)  # type: ignore[arg-type]
        with pytest.raises(RuntimeError, match="the disk is gone"):
            compiled(folder, "compile.seed=1", out="other")
    assert not (folder / "other").exists(), "nothing was made better"
    assert [s.stage for s in compiled(folder).stages] == ["start", "prompts", "weights"]


def test_a_matrix_compares_the_halves_and_runs_equal_stages_once(folder: Path) -> None:
    job = CompileJob(load(folder / "spec.yaml"), folder / "build", folder / "runs")
    matrix = run_matrix(job, [0, 1])
    assert [row.arm for row in matrix.rows] == ["start", "prompts", "weights", "prompts + weights"]
    done = {kind: len(list((folder / "runs").rglob(f"*-{kind}/result.json"))) for kind in ("prompts", "weights")}
    notes = [c.notes for c in matrix.cells if c.arm == "prompts"]
    kept = sum("the start is kept" in note[0] for note in notes)
    assert done == {"prompts": 2, "weights": 4 - kept}, "weights alone start where a kept start does"
    alone = compiled(folder, "compile.strategy=[weights]", "compile.seed=1", out="alone")
    scores = {(c.arm, c.seed): c.scores for c in matrix.cells}
    assert scores["weights", 1] == alone.stages[-1].scores
    row, means = matrix.rows[2], [sum(scores["weights", seed]) / 6 for seed in (0, 1)]
    assert row.by_seed == pytest.approx(means) and row.score.mean == pytest.approx(sum(means) / 2)
    assert row.gain.mean == pytest.approx(row.score.mean - sum(alone.stages[0].scores) / 6)
    found = json.loads((folder / "build/tiny/matrix.json").read_text())
    assert [r["arm"] for r in found["rows"]] == [row.arm for row in matrix.rows] and len(found["cells"]) == 8
    assert compiled(folder).stages[-1].scores == scores["prompts + weights", 0]


def test_a_matrix_needs_both_halves(folder: Path) -> None:
    job = CompileJob(load(folder / "spec.yaml", ["compile.strategy=[weights]"]), folder / "build", folder / "runs")
    with pytest.raises(UsageError, match=r"compile.strategy is \[weights\]; it needs `prompts` and one of"):
        run_matrix(job, [0])


def test_dev_is_not_scored_again_where_the_search_has_met_all_of_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mmc.compile import pipeline, stages

    real = stages.search

    def replaced(job: Any) -> Any:
        """The search's result, but with a candidate in the place of the start."""
        found = real(job)
        chosen = {"query": job.program.templates["query"].with_slot("instruction", "Say it.")}
        return replace(found, program=job.program.with_templates(chosen))

    scored: list[str] = []
    monkeypatch.setattr(stages, "search", replaced)
    real_score = pipeline.score
    monkeypatch.setattr(
        pipeline, "score", lambda c, s, split, what: (scored.append(split), real_score(c, s, split, what))[1]
    )
    options = ["compile.gate=true", "compile.strategy=[prompts]"]
    # Six dev examples: a search whose first round meets all of them, and one that meets four.
    result = compiled(folder, *options, "compile.prompts.examples=6", "compile.prompts.trials=1")
    assert "dev" not in scored and "dev +" in result.stages[1].note
    compiled(folder, *options, "compile.prompts.examples=4", "compile.prompts.trials=1", out="other")
    assert scored.count("dev") == 2


def test_stages_that_occur_twice_get_a_suffix(folder: Path) -> None:
    result = compiled(folder, "compile.strategy=[weights, weights]", "compile.weights.steps=1")
    assert [s.stage for s in result.stages] == ["start", "weights", "weights.2"]
    assert set(STAGES) == {"prompts", "distill", "weights"}


def test_search_goes_on_from_trained_weights_and_training_from_chosen_prompts(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mmc.compile import stages as module

    jobs: list[Any] = []
    real = module.search

    def replaced(job: Any) -> Any:
        """The search's result, but with the first candidate in the place of the start."""
        jobs.append(job)
        text = job.program.spec.modules["query"].candidates["instruction"][len(jobs) - 1]
        chosen = {"query": job.program.templates["query"].with_slot("instruction", text)}
        return replace(real(job), program=job.program.with_templates(chosen))

    monkeypatch.setattr(module, "search", replaced)
    result = compiled(folder, "compile.strategy=[prompts, weights, prompts, weights]", "compile.weights.steps=1")
    assert [s.stage for s in result.stages] == ["start", "prompts", "weights", "prompts.2", "weights.2"]
    first, second = jobs
    assert set(first.program.adapters.values()) == {None}
    adapter = second.program.adapters["query"]
    assert adapter is not None and "2-weights" in adapter, "the second search runs the trained program"
    assert second.program.templates["query"].slots["instruction"] == "Write words."
    assert "Say it." in (result.build / "templates/query.j2").read_text()
    assert (result.build / "adapters/shared").is_dir()


def test_changed_keys_are_named_by_their_leaves() -> None:
    assert changed_keys({"a": {"b": 1, "c": 2}, "d": 1}, {"a": {"b": 1, "c": 3}, "e": 1}) == ["a.c", "d", "e"]


def test_killed_by_a_signal_the_command_line_resumes(folder: Path) -> None:
    command = [sys.executable, "-m", "mmc", "compile", "spec.yaml", "--json"]
    whole = subprocess.run(
        [*command, "--out", "whole", "--runs", "other"], cwd=folder, capture_output=True, text=True, check=True
    )
    for stop in (signal.SIGINT, signal.SIGKILL):
        process = subprocess.Popen(
            [*command, "--set", "compile.weights.steps=4"],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        deadline = time.monotonic() + 60
        while not list(folder.glob(".mmc/runs/*/2-weights/training/step-*")) and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(process.pid, stop)
        _, shown = process.communicate(timeout=60)
        if stop == signal.SIGINT and process.returncode != 0:
            assert process.returncode == 130 and "go on with: mmc compile" in shown and "Traceback" not in shown
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    first, second = json.loads(whole.stdout), json.loads(done.stdout)
    assert first["stages"] == second["stages"]
    assert set(first["stages"][0]) == {"stage", "split", "score", "low", "high", "n"}
    assert adapter(Path(first["build"])) == adapter(Path(second["build"]))
