"""The ledger counts what was really asked, through interruptions; the run folder says what goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mmc.compile import CompileJob, compile_spec
from mmc.compile.live import KeptProgress
from mmc.compile.progress import Silent
from mmc.engine.local import LocalEngine
from mmc.program.usage import Usage, added
from mmc.spec import load

SHORT = ["compile.weights.steps=2", "compile.gate=true", "compile.weights.evaluate_every=1"]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every completion of the local engine."""
    found: list[Any] = []
    real = LocalEngine.complete

    async def noted(engine: LocalEngine, request: Any) -> Any:
        found.append(await real(engine, request))
        return found[-1]

    monkeypatch.setattr(LocalEngine, "complete", noted)
    return found


def compiled(folder: Path, *overrides: str, out: str = "build") -> tuple[dict[str, Any], Path]:
    """The manifest and the run folder."""
    job = CompileJob(load(folder / "spec.yaml", [*SHORT, *overrides]), folder / out, folder / f"runs-{out}")
    manifest = json.loads((compile_spec(job).build / "manifest.json").read_text())
    (run,) = (folder / f"runs-{out}").iterdir()
    return manifest, run


def sums(manifest: dict[str, Any]) -> Usage:
    return added({"all": Usage(**use)} for work in manifest["ledger"] for use in work["modules"].values())["all"]


def test_the_ledger_counts_every_call_once(folder: Path, asked: list[Any]) -> None:
    manifest, _ = compiled(folder, "compile.strategy=[prompts, distill, weights]", "compile.distill.threshold=0.0")
    prompt, completion = (sum(getattr(one, f"{kind}_tokens") for one in asked) for kind in ("prompt", "completion"))
    assert sums(manifest) == Usage(len(asked), prompt, completion, 0.0)
    works = [(work["stage"], work["what"]) for work in manifest["ledger"]]
    assert works[0] == ("start", "scoring test")
    assert {
        ("prompts", "search"),
        ("distill", "runs to learn from"),
        ("weights", "rollouts"),
        ("weights", "updates"),
    } <= {*works}
    assert all(set(work["modules"]) <= {"query", "pick"} for work in manifest["ledger"])
    assert manifest["machine"]["cores"]


def test_an_interrupted_compile_has_the_same_ledger(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, _ = compiled(folder, out="whole")
    from mmc.mmgrpo import checkpoint

    save = checkpoint.save

    def killed(where: Path, place: Any, policy: Any) -> None:
        save(where, place, policy)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            compiled(folder)
    run = next((folder / "runs-build").iterdir())
    assert json.loads((run / "run.json").read_text())["state"] == "running", "nobody was left to say otherwise"
    resumed, _ = compiled(folder)

    def used(manifest: dict[str, Any]) -> list[Any]:
        return [(work["stage"], work["what"], work["modules"]) for work in manifest["ledger"]]

    assert used(resumed) == used(whole)


def test_a_run_says_what_it_is_and_how_it_ended(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest, run = compiled(folder)
    about = json.loads((run / "run.json").read_text())
    assert about["state"] == "done" and about["error"] is None and Path(about["build"]).is_dir()
    assert about["strategy"] == ["prompts", "weights"] and about["splits"] == {"train": 8, "dev": 6, "test": 6}
    stages = json.loads((run / "stages.json").read_text())
    assert [{k: v for k, v in stage.items() if k != "traces"} for stage in stages] == manifest["stages"]
    assert all(Path(stage["traces"]).is_file() for stage in stages)
    log = (run / "log.txt").read_text().splitlines()
    assert any(line.endswith(str(stages[-1]["n"]) + ")") and " weights: test " in line for line in log)
    result = json.loads((run / "1-prompts/result.json").read_text())
    assert [trial["number"] for trial in result["trials"]][:2] == [0, 1] and result["trials"][0]["what"] == "the start"

    def broken(*_: Any) -> Any:
        raise RuntimeError("the disk is gone")

    monkeypatch.setitem(compile_spec.__globals__["STAGES"], "weights", broken)
    with pytest.raises(RuntimeError):
        compiled(folder, "compile.weights.steps=1")
    about = json.loads((run / "run.json").read_text())
    assert about["state"] == "failed" and about["error"] == "the disk is gone"


def test_progress_is_kept_at_most_once_a_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[int] = []
    monkeypatch.setattr("mmc.compile.live.write_json", lambda path, value: written.append(value["done"]))
    progress = KeptProgress(tmp_path, Silent())
    progress.begin("scoring", 1000)
    for done in range(1, 1001):
        progress.advance(done)
    assert written[0] == 0 and written[-1] == 1000 and len(written) < 20
