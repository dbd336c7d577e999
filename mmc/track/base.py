"""What a tracker is given, and what it must do with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

Setting = str | int | float | bool


@dataclass(frozen=True)
class Wanted:
    """A tracker by name, and where it keeps its runs; what an empty ``where`` means is the tracker's own."""

    name: str
    where: str = ""


@dataclass(frozen=True)
class Run:
    """One compile, as a tracker knows it."""

    project: str
    """What runs that belong together share: the spec's name."""
    key: str
    """Names the run: a compile that is resumed goes on under the same key. Fit for a file name."""
    folder: Path
    """Where a tracker keeps what is local."""
    where: str
    settings: Mapping[str, Setting]
    """What was compiled, and how, by dotted name."""
    logged: int
    """How many points earlier processes have logged in this run; 0 when it is new."""


@dataclass(frozen=True)
class Point:
    """Values of several curves at one step."""

    group: str
    """What the curves belong to, such as ``weights``; each group counts its own steps."""
    step: int
    values: Mapping[str, float]
    part: str
    """What is sent in order, so that the last step which was sent tells all of them."""
    identity: str
    """What the values depend on. Another identity at the same part is another run."""


class Tracker(Protocol):
    """A service or a folder that runs are kept in. Made at the start of a compile, where what it needs is imported; everything
    after that happens in a thread, one call at a time. What it raises there ends the tracking, never the compile.
    """

    def open(self, run: Run) -> str:
        """Opens a run, new or gone on with; where it is, or how to look at it. The run before it is closed."""
        ...

    def log(self, group: str, step: int, values: Mapping[str, float]) -> None:
        """Adds one point to the curves ``group/name``."""
        ...

    def flush(self) -> None:
        """Makes sure that what was logged outlives this process."""
        ...

    def close(self) -> None:
        """Ends the work on the run, for now or for good."""
        ...
