"""The live panel of long work on a terminal: stage, step, what is followed, tokens a second, money, time left."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType

from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.live import Live
from rich.panel import Panel as Box
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from mmc.cli.progress import duration
from mmc.engine.base import Engine

BARS = "▁▂▃▄▅▆▇█"
ECHO = "^C"
"""What a terminal writes behind the panel on an interrupt; it must not reach the next line, which would not be wiped out."""
CURVE = 32
"""How many of the last values the curve shows."""
EARLY = 0.05
"""Share of a piece of work before which its rate says little of the rest: the first of many are computed together."""


class Panel:
    """Redraws itself in place; lines worth keeping go above it. Gone when the work is done or interrupted."""

    def __init__(self, console: Console) -> None:
        self._live = Live(self, console=console, refresh_per_second=4, transient=True)
        self._console = console
        self._engines: Sequence[Engine] = ()
        self._stage = ""
        self._what, self._total, self._done = "", 0, 0
        self._detail, self._values = "", list[float]()
        self._began = self._stage_began = time.monotonic()
        self._first_done: int | None = None
        self._tokens_before = 0

    def __enter__(self) -> Panel:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    # --- what the work tells ---

    def watch(self, engines: Sequence[Engine]) -> None:
        self._engines = engines

    def stage(self, name: str, number: int, stages: int) -> None:
        self._stage, self._stage_began = f"stage {number} of {stages}: {name}", time.monotonic()

    def begin(self, what: str, total: int) -> None:
        if what == self._what:
            self._total = total  # a search corrects it as it goes
            return
        self._values, self._detail = [], ""
        self._what, self._total, self._done = what, total, 0
        self._began, self._first_done, self._tokens_before = time.monotonic(), None, self._tokens()

    def advance(self, done: int, detail: str = "", value: float | None = None) -> None:
        # A resumed piece of work does not begin at 0: what was there already tells nothing of the rate.
        self._first_done = done - 1 if self._first_done is None else self._first_done
        self._done, self._detail = done, detail
        if value is not None:
            self._values = [*self._values, value][-CURVE:]

    def say(self, line: str) -> None:
        self._console.print(line, highlight=False, markup=False)

    # --- what is shown ---

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if self._what:
            yield Box(
                Group(self._progress(), *self._followed(), self._spent()),
                title=Text(self._stage or "mmc", style="bold"),
                title_align="left",
                width=min(options.max_width - len(ECHO) - 1, 100),
                padding=(0, 1),
            )

    def _progress(self) -> Table:
        share = f"{self._done}/{self._total}" if self._total > 1 else ""
        row = Table.grid(padding=(0, 1), expand=True)
        row.add_column(ratio=3, no_wrap=True, overflow="ellipsis")
        row.add_column(ratio=4)
        row.add_column(justify="right", no_wrap=True)
        row.add_row(Text(self._what), ProgressBar(total=max(1, self._total), completed=self._done), share)
        return row

    def _followed(self) -> list[Text]:
        lines = [self._detail, curve(self._values) if len(self._values) > 1 else ""]
        return [Text(line, no_wrap=True, overflow="ellipsis") for line in lines if line]

    def _spent(self) -> Text:
        now = time.monotonic()
        parts = [duration(now - self._began)]
        fresh = self._done - (self._first_done or 0)
        if self._first_done is not None and self._done < self._total and fresh >= max(1, EARLY * self._total):
            parts.append(f"{duration((self._total - self._done) / fresh * (now - self._began))} left")
        tokens = self._tokens() - self._tokens_before
        if tokens:
            parts.append(f"{tokens / max(now - self._began, 1e-9):,.0f} tokens/s")
        dollars = [engine.spent.dollars for engine in self._engines]
        if None in dollars:
            parts.append("cost unknown")
        elif total := sum(d for d in dollars if d is not None):
            parts.append(f"${total:.4f}" if total < 1 else f"${total:.2f}")
        return Text(" · ".join(parts), style="dim", no_wrap=True, overflow="ellipsis")

    def _tokens(self) -> int:
        return sum(engine.spent.tokens for engine in self._engines)


def curve(values: Sequence[float]) -> str:
    """The values as small bars, with the lowest and the highest."""
    low, high = min(values), max(values)
    height = (high - low) or 1.0
    bars = "".join(BARS[round((value - low) / height * (len(BARS) - 1))] for value in values)
    return f"{bars}  {low:.3g} to {high:.3g}"
