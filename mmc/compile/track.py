"""What a compile tells its trackers: every line of its curves, the scores of its stages, and what it has used.

Curves are read from the run folder, where a line stands once its step can be resumed from. So a tracker gets no gaps whenever the
compile was killed, and may be added to one that is half done. Steps that were sent are not sent again; :mod:`mmc.track.send` says
when that cannot be known.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmc.build import StageScore, Work
from mmc.errors import needing
from mmc.program.graph import Program
from mmc.program.usage import Usage
from mmc.track import TRACKERS, Point, Senders, Tracker, Wanted
from mmc.track.base import Setting
from mmc.track.send import Sender, Subject

CURVES = ("trials.jsonl", "training/metrics.jsonl")
"""Where a stage's curves are in its folder: one JSON object a line; the line's number is its step unless it says another."""


class Tracking:
    """Passes on what is new in the folders of stages. Does nothing without trackers."""

    def __init__(self, senders: Senders, say: Callable[[str], None]) -> None:
        self._senders, self._say = senders, say
        self._labels: dict[Path, str] = {}
        self._read: dict[Path, tuple[int, int]] = {}
        """File -> bytes and lines of it that were passed on."""

    def begin(self, label: str, folder: Path) -> None:
        """The stage ``label`` works in ``folder``, whose inputs stand there."""
        self._labels[folder] = label

    def look(self, folder: Path) -> None:
        """Something is new in a stage's folder."""
        label = self._labels.get(folder)
        if label is None:
            return
        inputs = folder / "inputs.json"
        identity = hashlib.sha256(inputs.read_bytes() if inputs.exists() else b"").hexdigest()
        for name in CURVES:
            for step, line in self._lines(folder / name):
                self._send(Point(label, step, dict(numbers(line)), label, identity))

    def scored(self, stages: Sequence[StageScore], ledger: Sequence[Work]) -> None:
        """The last of ``stages`` has been scored; ``ledger``: the work up to there."""
        step, stage = len(stages) - 1, stages[-1]
        score = {
            "score": stage.score,
            "low": stage.low,
            "high": stage.high,
            "seconds": stage.seconds,
            "tokens": stage.tokens,
        }
        parts = {f"parts/{name}": value for name, value in stage.parts.items()}
        identity = stage.traces.stem  # a digest of the program and its data
        for group, values in ((stage.split, {**score, **parts}), ("ledger", totals(ledger))):
            self._send(Point(group, step, values, f"{group} {step}", identity))

    def close(self) -> None:
        """Nothing comes any more. Waits a little for what is on its way."""
        for line in self._senders.close():
            self._say(line)

    def _send(self, point: Point) -> None:
        for line in self._senders.send(point):
            self._say(line)

    def _lines(self, file: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
        """Whole lines that were not there at the last look, with their steps."""
        if not file.exists():
            return
        place, number = self._read.get(file, (0, 0))
        with file.open("rb") as stream:
            stream.seek(place)
            for raw in stream:
                if not raw.endswith(b"\n"):
                    break
                place, number = place + len(raw), number + 1
                try:
                    line = json.loads(raw)
                except ValueError:  # torn by a kill
                    continue
                yield int(line.get("step", number)), line
        self._read[file] = place, number


NOWHERE = Tracking(Senders(), lambda line: None)
"""No tracker at all."""


def open_tracking(
    wanted: Sequence[Wanted], folder: Path, program: Program, splits: Mapping[str, int], say: Callable[[str], None]
) -> Tracking:
    """The trackers of one compile; what they keep is below ``folder``, the run folder. Raises EnvironmentProblem."""
    subject = Subject(program.spec.name, folder / "track", settings(program, splits))
    return Tracking(Senders([Sender(one, _tracker(one.name), subject) for one in wanted]), say)


def _tracker(name: str) -> Tracker:
    with needing("track", f"--track {name}"):
        return TRACKERS[name]()


def numbers(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """The numbers of nested data by name, such as ``modules/pick/reward``; the step is no value."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from numbers(value, f"{prefix}{key}/")
        elif isinstance(value, int | float) and not isinstance(value, bool) and key not in ("step", "steps"):
            yield f"{prefix}{key}", float(value)


def totals(ledger: Sequence[Work]) -> dict[str, float]:
    """Sums over all work so far; what is not known of a part of it is left out."""
    used = [None if work.modules is None else sum(work.modules.values(), Usage()) for work in ledger]
    found: dict[str, float] = {}
    if None not in used:
        usage = sum((one for one in used if one is not None), Usage())
        found = {name: float(getattr(usage, name)) for name in ("calls", "prompt_tokens", "completion_tokens")}
        if usage.dollars is not None:
            found["dollars"] = usage.dollars
    seconds = [work.seconds for work in ledger]
    if None not in seconds:
        found["seconds"] = sum(one for one in seconds if one is not None)
    return found


def settings(program: Program, splits: Mapping[str, int]) -> dict[str, Setting]:
    """What tells this compile from others, by dotted name: keys of `compile`, the modules' models, the splits' sizes."""
    spec = program.spec
    parts = {
        "spec": program.loaded.sha256,
        "metric": spec.metric.type if spec.metric else "none",
        "modules": {name: module.model for name, module in spec.modules.items()},
        "splits": dict(splits),
        "compile": spec.compile.model_dump(mode="json", include={"seed", "strategy", "gate", *spec.compile.strategy}),
    }
    return dict(_flat(parts))


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Setting]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        elif value is not None:
            yield f"{prefix}{key}", value if isinstance(value, str | int | float | bool) else json.dumps(value)
