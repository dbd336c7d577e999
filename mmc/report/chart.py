"""The geometry of charts: scales with round ticks, intervals on them, and curves. Pages draw them as SVG."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, floor, isfinite, log10
from typing import Any

Row = Mapping[str, Any]
Point = tuple[float, float]
WINDOW = 5
"""Steps that the bold line of a curve is the mean of."""
COLOURS = 6
"""How many series the stylesheet has colours for."""


@dataclass(frozen=True)
class Scale:
    """A range with round ends and the ticks in it."""

    low: float
    high: float
    ticks: tuple[float, ...]

    def at(self, value: float) -> float:
        """Where ``value`` stands, in percent of the range."""
        return round(100 * (min(self.high, max(self.low, value)) - self.low) / (self.high - self.low), 2)


def scale_of(values: Iterable[float], most: int = 4) -> Scale:
    """A scale that holds all ``values`` and has at most ``most`` steps, each 1, 2 or 5 times a power of ten."""
    finite = [value for value in values if isfinite(value)] or [0.0, 1.0]
    low, high = min(finite), max(finite)
    if high - low < 1e-9:
        low, high = low - max(abs(low), 1.0) / 2, high + max(abs(high), 1.0) / 2
    step = _step((high - low) / most)
    while ceil(high / step - 1e-6) - floor(low / step + 1e-6) > most:
        step = _step(step * 1.5)
    first, last = floor(low / step + 1e-6), ceil(high / step - 1e-6)
    ticks = tuple(round(i * step, 10) for i in range(first, last + 1))
    return Scale(ticks[0], ticks[-1], ticks)


def _step(least: float) -> float:
    """The smallest of 1, 2, 5 times a power of ten that is at least ``least``."""
    power = 10.0 ** floor(log10(least))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= least * (1 - 1e-9))


@dataclass(frozen=True)
class Series:
    """One line of a chart: every value faint, their running mean bold; coordinates in percent, y downwards."""

    name: str
    raw: str
    smooth: str
    first: float
    last: float


@dataclass(frozen=True)
class Chart:
    """One measure over steps."""

    title: str
    what: str
    scale: Scale
    series: tuple[Series, ...]
    steps: tuple[int, int]

    @property
    def told(self) -> str:
        """For who cannot see it."""
        lines = "; ".join(f"{s.name or self.title} from {s.first:.3g} to {s.last:.3g}" for s in self.series)
        return f"{self.title} over steps {self.steps[0]} to {self.steps[1]}: {lines}"


Measure = tuple[str, str, Callable[[Row], Any]]
"""(title, what it is, a step's line -> its value)."""


def _of(key: str) -> Callable[[Row], Any]:
    return lambda row: row.get(key)


TRAINING: tuple[Measure, ...] = (
    ("Reward", "mean of the step's runs", _of("reward")),
    ("Dev", "score of greedy runs on dev", _of("dev")),
    ("Useful groups", "share of groups whose rewards differ", _of("useful")),
    ("Spread", "mean over groups of best less worst reward", _of("spread")),
    ("Interrupted", "share of runs that did not reach their end", _of("failures")),
    ("Entropy", "per token, in nats", _of("entropy")),
    ("KL", "per token, to the model without adapter", _of("kl")),
    ("Gradient norm", "before clipping", _of("grad_norm")),
    ("Clipped", "share of tokens whose ratio was clipped", _of("clipped")),
    # That of mmGRPO says nothing: advantages sum to 0.
    ("Loss", "of the step", lambda row: None if "reward" in row else row.get("loss")),
)
BY_MODULE: tuple[Measure, ...] = (
    ("Reward by module", "mean of what its calls got", _of("reward")),
    ("Spread by module", "mean over its groups", _of("spread")),
    ("Length by module", "tokens of a completion", _of("tokens")),
)


def charts_of(rows: Sequence[Row]) -> list[Chart]:
    """The curves of a training, from the lines of its metrics.jsonl. A measure that is nowhere or always 0 is left out."""
    found = []
    for title, what, value in TRAINING:
        points = [(float(row["step"]), value(row)) for row in rows if value(row) is not None]
        if any(y for _, y in points):
            found.append(chart(title, what, {"": points}))
    modules = dict.fromkeys(name for row in rows for name in row.get("modules", {}))
    for title, what, value in BY_MODULE:
        lines = {
            name: [(float(r["step"]), value(r["modules"][name])) for r in rows if name in r.get("modules", {})]
            for name in modules
        }
        if len(modules) > 1:
            found.insert(1 if title.startswith("Reward") else len(found), chart(title, what, lines))
    return found


def chart(title: str, what: str, lines: Mapping[str, Sequence[Point]]) -> Chart:
    """A chart of named lines, each of at least one point."""
    xs = [x for points in lines.values() for x, _ in points]
    scale = scale_of((y for points in lines.values() for _, y in points), most=3)
    low, high = min(xs), max(xs)

    def place(points: Sequence[Point]) -> str:
        placed = [(100 * (x - low) / (high - low) if high > low else 50.0, 100 - scale.at(y)) for x, y in points]
        return " ".join(f"{x:.2f},{y:.2f}" for x, y in placed)

    series = []
    for name, points in lines.items():
        bold = smoothed(points)
        series.append(Series(name, place(points), place(bold), bold[0][1], bold[-1][1]))
    return Chart(title, what, scale, tuple(series), (int(low), int(high)))


def smoothed(points: Sequence[Point]) -> list[Point]:
    """Each value's mean with up to ``WINDOW`` - 1 before it."""
    found = []
    for i, (x, _) in enumerate(points):
        window = [y for _, y in points[max(0, i - WINDOW + 1) : i + 1]]
        found.append((x, sum(window) / len(window)))
    return found
