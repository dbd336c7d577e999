"""`mmc plan`: what it says is what a compile then does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mmc.cli import execute
from mmc.compile import CompileJob, compile_spec
from mmc.compile.plan import Plan, make_plan
from mmc.compile.progress import Silent
from mmc.engine.local import LocalEngine
from mmc.spec import load


def job(folder: Path, *overrides: str, **options: Any) -> CompileJob:
    return CompileJob(load(folder / "spec.yaml", overrides), folder / "build", folder / "runs", **options)


def statuses(plan: Plan) -> list[str]:
    return [stage.status for stage in plan.stages]


SEARCHES = [
    "{trials: 2, demos: 1, examples: 4, bootstrap: 4}",
    "{algorithm: bootstrap, trials: 2, demos: 1, examples: 4, bootstrap: 4}",
    "{algorithm: mipro, trials: 3, minibatch: 2, examples: 4, bootstrap: 4, full_every: 2}",
]


@pytest.mark.parametrize("search", SEARCHES)
def test_a_compile_makes_as_many_calls_as_planned(folder: Path, monkeypatch: pytest.MonkeyPatch, search: str) -> None:
    options = [f"compile.prompts={search}", "compile.gate=true", "compile.weights.evaluate_every=2"]
    plan = make_plan(job(folder, *options))
    assert statuses(plan) == ["to do", "to do", "waiting"]
    assert not (folder / "runs").exists(), "planning leaves nothing behind"
    made = 0
    real = LocalEngine.complete

    async def counted(engine: LocalEngine, request: Any) -> Any:
        nonlocal made
        made += 1
        return await real(engine, request)

    monkeypatch.setattr(LocalEngine, "complete", counted)
    compile_spec(job(folder, *options))
    low, high = sum(s.calls.low for s in plan.stages), sum(s.calls.high for s in plan.stages)
    assert low <= made <= high, (low, made, high)
    after = make_plan(job(folder, *options))
    assert statuses(after) == ["done"] * 3 and not after.work
    assert all(stage.calls.high == 0 for stage in after.stages)
    assert any("scored runs of this spec" in line for line in after.rests_on)


def test_what_changed_is_named_and_the_rest_waits(folder: Path) -> None:
    compile_spec(job(folder))
    stale = make_plan(job(folder, "compile.prompts.trials=3"))
    assert statuses(stale) == ["done", "stale", "waiting"]
    assert stale.stages[1].why == "changed since: compile.prompts.trials"
    assert stale.stages[1].seconds is not None, "time rests on what was measured"
    later = make_plan(job(folder, "compile.weights.steps=5"))
    assert statuses(later) == ["done", "done", "stale"]


def test_an_interrupted_training_goes_on(folder: Path) -> None:
    class Stop(BaseException):
        pass

    class Progress(Silent):
        def begin(self, what: str, total: int) -> None:
            self.what = what

        def advance(self, done: int, detail: str = "", value: float | None = None) -> None:
            if self.what == "mmGRPO" and done == 2:
                raise Stop

    with pytest.raises(Stop):
        compile_spec(job(folder, progress=Progress()))
    plan = make_plan(job(folder))
    assert statuses(plan) == ["done", "done", "begun"] and plan.stages[2].why == "goes on from step 2"


def test_remote_models_have_a_price_or_are_unknown(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEY", "x")
    text = (folder / "spec.yaml").read_text()
    text = text.replace("models:", 'models:\n  far: {type: litellm, model: MODEL, api_key: "${env:KEY}"}')
    text = text.replace("  query:\n    model: policy", "  query:\n    train: false\n    model: far")
    (folder / "spec.yaml").write_text(text.replace("MODEL", "openai/gpt-4.1-mini"))
    plan = make_plan(job(folder))
    priced = plan.stages[0].dollars
    assert priced is not None and 0 < priced.low < priced.high < 0.01
    (folder / "spec.yaml").write_text(text.replace("MODEL", "openai/a-model-nobody-knows"))
    plan = make_plan(job(folder))
    assert plan.stages[0].dollars is None
    assert "dollars: no price is known for openai/a-model-nobody-knows" in plan.rests_on


def test_the_command_prints_a_table_and_its_exit_code_says_whether_there_is_work(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["plan", str(folder / "spec.yaml"), "--out", str(folder / "build"), "--runs", str(folder / "runs")]
    assert execute(options) == 0
    said = capsys.readouterr().out
    assert said.splitlines()[0].split() == ["stage", "status", "runs", "calls", "tokens", "dollars", "time"]
    assert "calls: 2 a run" in said and "unknown" in said
    assert execute([*options, "--detailed-exitcode"]) == 10
    capsys.readouterr()
    assert execute([*options, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["work"] is True and [s["stage"] for s in found["stages"]] == ["start", "1 prompts", "2 weights"]
    compile_spec(job(folder))
    assert execute([*options, "--detailed-exitcode"]) == 0
