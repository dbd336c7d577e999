"""Progress on stderr: a live panel on a terminal, plain lines otherwise."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mmc.cli.panel import Panel
    from mmc.engine.base import Engine

PLAIN_SECONDS = 5.0
"""At most one plain line in this time, but for the last one of a piece of work."""


class PlainProgress:
    """Lines such as ``mmGRPO 12/40 (30%), 0.21/s, 2m10s left: reward 0.412``."""

    def __init__(self) -> None:
        self._what, self._total, self._start, self._last = "", 0, 0.0, 0.0
        self._begun_at: int | None = None

    def __enter__(self) -> PlainProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def watch(self, engines: Sequence[Engine]) -> None:
        pass

    def stage(self, name: str, number: int, stages: int) -> None:
        pass

    def begin(self, what: str, total: int) -> None:
        if what == self._what:
            self._total = total  # a search corrects it as it goes
            return
        self._what, self._total, self._begun_at = what, total, None
        self._start, self._last = time.monotonic(), 0.0
        print(f"{what} ...", file=sys.stderr, flush=True)

    def advance(self, done: int, detail: str = "", value: float | None = None) -> None:
        now = time.monotonic()
        # A resumed piece of work does not begin at 0: what was there already tells nothing of the rate.
        self._begun_at = done - 1 if self._begun_at is None else self._begun_at
        if done < self._total and now - self._last < PLAIN_SECONDS:
            return
        self._last = now
        rate = (done - self._begun_at) / max(now - self._start, 1e-9)
        share = f" ({done / self._total:.0%})" if self._total > 1 else ""
        line = f"{self._what} {done}/{self._total}{share}"
        if done >= self._total:
            line += f", {rate:.2g}/s in {duration(now - self._start)}"
        elif done - self._begun_at >= 0.05 * self._total:
            # The first of many says little about the rest: they are computed together.
            line += f", {rate:.2g}/s, {duration((self._total - done) / rate)} left"
        print(line + (f": {detail}" if detail else ""), file=sys.stderr, flush=True)

    def say(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)


def make_progress() -> PlainProgress | Panel:
    """The live panel on a terminal that can redraw lines, plain lines otherwise."""
    if not sys.stderr.isatty():
        return PlainProgress()
    from rich.console import Console

    from mmc.cli.panel import Panel

    console = Console(stderr=True)
    return PlainProgress() if console.is_dumb_terminal else Panel(console)


def duration(seconds: float) -> str:
    """Such as 45s, 2m10s, 1h05m."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes}m{rest:02d}s" if minutes < 60 else f"{minutes // 60}h{minutes % 60:02d}m"
