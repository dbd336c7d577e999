"""What a run folder tells whoever looks at it meanwhile.

run.json       what is compiled, since when, and how it ended
stages.json    the scores of every stage so far
progress.json  the piece of work that is going on
log.txt        what was said, with times
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import mmc
from mmc.build.machine import machine
from mmc.build.manifest import StageScore, stage_entries
from mmc.compile.progress import Progress
from mmc.compile.record import read_json, write_json
from mmc.engine.base import Engine
from mmc.program.graph import Program

EVERY = 1.0
"""At most one progress.json in this many seconds, but for the last one of a piece of work."""


class KeptProgress:
    """Passes everything on, and keeps it in the run folder."""

    def __init__(self, folder: Path, shown: Progress) -> None:
        self.folder, self.shown = folder, shown
        self._what, self._total, self._began, self._last = "", 0, "", 0.0

    def watch(self, engines: Sequence[Engine]) -> None:
        self.shown.watch(engines)

    def stage(self, name: str, number: int, stages: int) -> None:
        self.shown.stage(name, number, stages)

    def begin(self, what: str, total: int) -> None:
        if (what, total) != (self._what, self._total):
            same = what == self._what  # a search corrects its total as it goes
            self._what, self._total = what, total
            self._began = self._began if same else now()
            self._last = 0.0
            self._write(0, "")
        self.shown.begin(what, total)

    def advance(self, done: int, detail: str = "", value: float | None = None) -> None:
        if done >= self._total or time.monotonic() - self._last >= EVERY:
            self._write(done, detail)
        self.shown.advance(done, detail, value)

    def say(self, line: str) -> None:
        with (self.folder / "log.txt").open("a", encoding="utf-8") as log:
            log.write(f"{now()} {line}\n")
        self.shown.say(line)

    def _write(self, done: int, detail: str) -> None:
        self._last = time.monotonic()
        found = {"what": self._what, "total": self._total, "done": done, "detail": detail}
        write_json(self.folder / "progress.json", {**found, "began": self._began, "at": now()})


def now() -> str:
    """The time, to the second, in ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def begin_run(folder: Path, program: Program, out: Path, splits: Mapping[str, int]) -> None:
    """Writes run.json: the run is going on."""
    spec = program.spec
    about = {
        "name": spec.name,
        "description": spec.description,
        "spec": str(program.loaded.path),
        "out": str(out.resolve()),
        "seed": spec.compile.seed,
        "strategy": list(spec.compile.strategy),
        "modules": {name: module.model for name, module in spec.modules.items()},
        "metric": spec.metric.type if spec.metric else None,
        "splits": dict(splits),
        "mmc": mmc.__version__,
        "machine": machine(),
        "started": now(),
        "state": "running",
    }
    write_json(folder / "run.json", about)


def end_run(folder: Path, **ended: Any) -> None:
    """Adds to run.json how the run ended."""
    write_json(folder / "run.json", {**(read_json(folder / "run.json") or {}), **ended, "ended": now()})


def tell_stages(folder: Path, stages: Sequence[StageScore]) -> None:
    """Writes stages.json."""
    entries = zip(stage_entries(stages), stages, strict=True)
    write_json(folder / "stages.json", [{**entry.model_dump(), "traces": str(s.traces)} for entry, s in entries])
