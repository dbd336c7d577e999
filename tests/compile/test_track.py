"""What a compile measures reaches its trackers once, whatever happens to the compile or to them."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from mmc.compile import CompileJob, CompileResult, compile_spec
from mmc.compile.progress import Silent
from mmc.compile.track import numbers
from mmc.spec import load
from mmc.track import Run, Tracker, Wanted

Points = list[tuple[str, int, Mapping[str, float]]]


class Memory:
    """Keeps the points of its runs in this process; stands in ``TRACKERS`` as what makes it."""

    def __init__(self, hears: Callable[[str, int], None] = lambda group, step: None) -> None:
        self.runs: dict[str, Points] = {}
        self.opened: list[Run] = []
        self._hears = hears

    def __call__(self) -> Tracker:
        return self

    def open(self, run: Run) -> str:
        self.opened.append(run)
        self.runs.setdefault(run.key, [])
        return "in memory"

    def log(self, group: str, step: int, values: Mapping[str, float]) -> None:
        self._hears(group, step)
        self.runs[self.opened[-1].key].append((group, step, values))

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass


class Listening(Silent):
    """Keeps what is said, and may end the compile at the n-th sign of life."""

    def __init__(self, killed_after: int = 10**9) -> None:
        self.said: list[str] = []
        self.left = killed_after

    def say(self, line: str) -> None:
        self.said.append(line)

    def advance(self, done: int, detail: str = "", value: float | None = None) -> None:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Memory:
    memory = Memory()
    monkeypatch.setattr("mmc.compile.track.TRACKERS", {"memory": memory})
    return memory


def compiled(folder: Path, *overrides: str, progress: Listening | None = None) -> CompileResult:
    loaded = load(folder / "spec.yaml", overrides)
    wanted = (Wanted("memory"),)
    return compile_spec(
        CompileJob(loaded, folder / "build", folder / "runs", progress=progress or Listening(), track=wanted)
    )


def lines(folder: Path, pattern: str) -> list[dict[str, Any]]:
    (file,) = folder.glob(f"runs/*/{pattern}")
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_curves_scores_and_totals_are_told(folder: Path, memory: Memory) -> None:
    result = compiled(folder)
    ((key, points),) = memory.runs.items()
    assert key.startswith("tiny-")
    weights = [(step, values) for group, step, values in points if group == "weights"]
    metrics = lines(folder, "2-weights/training/metrics.jsonl")
    assert weights == [(line["step"], dict(numbers(line))) for line in metrics]
    assert "modules/pick/reward" in weights[0][1] and "usage/pick/calls" in weights[0][1]
    trials = [values["score"] for group, _, values in points if group == "prompts"]
    assert trials == [line["score"] for line in lines(folder, "1-prompts/trials.jsonl")] and len(trials) >= 3
    scores = [(step, values["score"], values["low"]) for group, step, values in points if group == "test"]
    assert scores == [(i, stage.score, stage.low) for i, stage in enumerate(result.stages)]
    totals = [values for group, _, values in points if group == "ledger"]
    ledger = json.loads((result.build / "manifest.json").read_text())["ledger"]
    assert totals[-1]["calls"] == sum(used["calls"] for work in ledger for used in work["modules"].values())
    assert totals[-1]["dollars"] == 0.0 and totals[0]["calls"] < totals[-1]["calls"]
    settings = memory.opened[0].settings
    assert settings["compile.weights.learning_rate"] == 0.01 and settings["splits.train"] == 8


def test_interrupted_anywhere_no_step_is_doubled_and_none_is_lost(folder: Path, memory: Memory) -> None:
    interruptions = 0
    while True:
        try:
            compiled(folder, progress=Listening(8))
            break
        except BaseException as error:
            while isinstance(error, BaseExceptionGroup):
                error = error.exceptions[0]
            assert isinstance(error, KeyboardInterrupt), repr(error)
            interruptions += 1
            assert interruptions < 40
    assert interruptions > 2 and len(memory.opened) > 2, "it was opened again and again"
    ((_, points),) = memory.runs.items()
    counts = Counter((group, step) for group, step, _ in points)
    assert set(counts.values()) == {1}
    assert [step for group, step, _ in points if group == "weights"] == [1, 2, 3, 4]
    assert [step for group, step, _ in points if group == "test"] == [0, 1, 2]
    assert memory.opened[-1].logged + 2 >= len(points) - 4, "a run that goes on knows how much it has"


def test_a_tracker_added_later_gets_everything(folder: Path, memory: Memory) -> None:
    compile_spec(CompileJob(load(folder / "spec.yaml"), folder / "build", folder / "runs"))
    assert not memory.runs
    compiled(folder)
    ((_, points),) = memory.runs.items()
    assert [step for group, step, _ in points if group == "weights"] == [1, 2, 3, 4]
    compiled(folder)
    assert len(memory.opened) == 1, "nothing was new, so nothing was opened"


def test_changed_inputs_begin_a_run_of_their_own(folder: Path, memory: Memory) -> None:
    compiled(folder)
    compiled(folder, "compile.weights.steps=5")
    first, second = memory.runs.values()
    assert [step for group, step, _ in first if group == "weights"] == [1, 2, 3, 4]
    assert [step for group, step, _ in second if group == "weights"] == [1, 2, 3, 4, 5]
    assert [p for p in second if p[0] == "prompts"] == [p for p in first if p[0] == "prompts"], (
        "the whole compile is in it"
    )
    assert [step for group, step, _ in second if group == "test"] == [0, 1, 2]


def test_a_tracker_that_fails_is_said_once_and_changes_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(group: str, step: int) -> None:
        if group == "weights" and step == 2:
            raise ConnectionError("the server is gone\nin many lines")

    memory = Memory(fail)
    monkeypatch.setattr("mmc.compile.track.TRACKERS", {"memory": memory})
    progress = Listening()
    result = compiled(folder, progress=progress)
    assert [s.stage for s in result.stages] == ["start", "prompts", "weights"]
    said = [line for line in progress.said if "failed" in line]
    assert said == ["memory failed, and gets nothing more of this compile: ConnectionError: the server is gone"]
    monkeypatch.setattr("mmc.compile.track.TRACKERS", {"memory": (again := Memory())})
    compiled(folder)
    ((_, rest),) = again.runs.items()
    weights = [step for group, step, _ in memory.runs.popitem()[1] + rest if group == "weights"]
    assert weights in ([1, 2, 3, 4], [1, 1, 2, 3, 4]), (
        "the next one goes on where it failed; what was not certain comes again"
    )


def test_a_tracker_that_hangs_holds_nothing_up(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forever = threading.Event()
    monkeypatch.setattr("mmc.compile.track.TRACKERS", {"memory": Memory(lambda group, step: forever.wait() and None)})
    monkeypatch.setattr("mmc.track.send.CLOSING", 0.2)
    progress = Listening()
    result = compiled(folder, progress=progress)
    assert len(result.stages) == 3
    assert any("memory has not taken everything" in line for line in progress.said)
    forever.set()
