"""Sends points to trackers: each in a thread of its own, which nobody waits for while work goes on.

What was sent is kept beside the run, so a resumed compile goes on in the same run behind its last point. When a value depends on
something that has changed since (another spec, other data), the run is left as it is and a new one begins.
"""

from __future__ import annotations

import hashlib
import json
import queue
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mmc.files import whole_file
from mmc.track.base import Point, Run, Setting, Tracker, Wanted

CLOSING = 20.0
"""Seconds that the end of a compile waits for trackers, all of them together."""
LONGEST = 300
"""Characters of an error that are told."""


@dataclass(frozen=True)
class Subject:
    """What is tracked, for all trackers alike. Files are kept below ``folder``."""

    project: str
    folder: Path
    settings: Mapping[str, Setting]


@dataclass
class Sent:
    """What a run has got so far: for each part its identity and last step. Kept in a file."""

    key: str
    number: int = 1
    logged: int = 0
    parts: dict[str, tuple[str, int]] = field(default_factory=dict)

    def has(self, point: Point) -> bool:
        return point.part in self.parts and self.parts[point.part][1] >= point.step

    def contradicts(self, point: Point) -> bool:
        return point.part in self.parts and self.parts[point.part][0] != point.identity

    def add(self, point: Point) -> None:
        self.parts[point.part] = (point.identity, point.step)
        self.logged += 1


class Sender(threading.Thread):
    """One tracker: takes points, opens the run at the first new one, and remembers what was sent."""

    def __init__(self, wanted: Wanted, tracker: Tracker, subject: Subject) -> None:
        super().__init__(name=f"track-{wanted.name}", daemon=True)
        self.wanted, self._tracker, self._subject = wanted, tracker, subject
        place = f"{wanted.name}-{_short(wanted.where)}" if wanted.where else wanted.name
        self._file = subject.folder / f"{place}.json"
        self._points: queue.SimpleQueue[Point | None] = queue.SimpleQueue()
        self.lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        """What should be told, for whoever owns the terminal."""
        self._history: list[Point] = []
        self._open = self._failed = False

    def send(self, point: Point) -> None:
        if not self._failed:
            self._points.put(point)

    def finish(self) -> None:
        """No point comes any more."""
        self._points.put(None)

    def run(self) -> None:
        try:
            sent = self._load()
            while (point := self._points.get()) is not None:
                sent = self._take(point, sent)
                if self._open and self._points.empty():
                    self._keep(sent)
            if self._open:
                self._keep(sent)
                self._tracker.close()
        except Exception as error:  # a tracker is told to more people, and must not stop the work it tells of
            self._failed = True
            first = (str(error).strip().splitlines() or [""])[0][:LONGEST]
            self.lines.put(
                f"{self.wanted.name} failed, and gets nothing more of this compile: {type(error).__name__}: {first}"
            )

    def _take(self, point: Point, sent: Sent) -> Sent:
        """Logs a point that is new to the run; everything again in a run of its own when it contradicts the run."""
        self._history.append(point)
        if sent.contradicts(point):
            if self._open:
                self._tracker.close()
                self._open = False
            sent = self._new(sent.number + 1)
            for earlier in self._history:
                self._log(earlier, sent)
        elif not sent.has(point):
            self._log(point, sent)
        return sent

    def _log(self, point: Point, sent: Sent) -> None:
        if not self._open:
            self.lines.put(f"{self.wanted.name}: {self._tracker.open(self._run(sent))}")
            self._open = True
        self._tracker.log(point.group, point.step, point.values)
        sent.add(point)

    def _run(self, sent: Sent) -> Run:
        about = self._subject
        return Run(about.project, sent.key, about.folder, self.wanted.where, about.settings, sent.logged)

    def _new(self, number: int) -> Sent:
        return Sent(f"{self._subject.project}-{_short(str(self._subject.folder))}-{number}", number)

    def _load(self) -> Sent:
        if not self._file.exists():
            return self._new(1)
        found: dict[str, Any] = json.loads(self._file.read_text(encoding="utf-8"))
        parts = {part: (identity, step) for part, (identity, step) in found.pop("parts").items()}
        return Sent(**found, parts=parts)

    def _keep(self, sent: Sent) -> None:
        """After the tracker's own flush: a kill in between sends its last points twice, and loses none."""
        self._tracker.flush()
        with whole_file(self._file) as new:
            new.write_text(json.dumps(asdict(sent), indent=1) + "\n", encoding="utf-8")


class Senders:
    """All trackers of one compile; none when none is wanted."""

    def __init__(self, senders: Sequence[Sender] = ()) -> None:
        self._senders = senders
        for sender in senders:
            sender.start()

    def send(self, point: Point) -> list[str]:
        """Hands a point to every tracker, and gives what they have to tell."""
        for sender in self._senders:
            sender.send(point)
        return self._lines()

    def close(self) -> list[str]:
        """Waits a little for what is not sent yet; gives what trackers have to tell."""
        end = time.monotonic() + CLOSING
        for sender in self._senders:
            sender.finish()
        for sender in self._senders:
            sender.join(max(0.0, end - time.monotonic()))
        late = [sender.wanted.name for sender in self._senders if sender.is_alive()]
        waited = f"has not taken everything {CLOSING:g} s after the end; the same command sends the rest"
        return [*self._lines(), *(f"{name} {waited}" for name in late)]

    def _lines(self) -> list[str]:
        found = []
        for sender in self._senders:
            while not sender.lines.empty():
                found.append(sender.lines.get())
        return found


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]
