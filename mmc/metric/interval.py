"""95% intervals for mean scores and for paired differences of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import fmean

_Z = 1.959963984540054
_RESAMPLES = 5000


@dataclass(frozen=True)
class Interval:
    """A mean of ``n`` scores and its 95% interval."""

    mean: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}] (n={self.n})"


def interval(scores: Sequence[float]) -> Interval:
    """The mean score; Wilson's interval when all scores are 0 or 1, else a percentile bootstrap with a fixed seed.

    Raises ValueError when there are no scores.
    """
    if not scores:
        raise ValueError("no scores")
    if all(s in (0.0, 1.0) for s in scores):
        return _wilson(sum(scores), len(scores))
    low, high = _bootstrap(scores)
    return Interval(fmean(scores), low, high, len(scores))


def paired(before: Sequence[float], after: Sequence[float]) -> Interval:
    """The mean of after - before over the same examples, with a percentile bootstrap over examples.

    Raises ValueError when the two differ in length.
    """
    if len(before) != len(after) or not before:
        raise ValueError(f"paired scores of {len(before)} and {len(after)} examples")
    differences = [b - a for a, b in zip(before, after, strict=True)]
    low, high = _bootstrap(differences)
    return Interval(fmean(differences), low, high, len(differences))


def _wilson(successes: float, n: int) -> Interval:
    share = successes / n
    centre = (share + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    half = _Z / (1 + _Z**2 / n) * sqrt(share * (1 - share) / n + _Z**2 / (4 * n**2))
    return Interval(share, max(0.0, centre - half), min(1.0, centre + half), n)


def _bootstrap(values: Sequence[float]) -> tuple[float, float]:
    import numpy as np

    array = np.asarray(values, dtype=np.float64)
    picks = np.random.default_rng(0).integers(0, len(array), size=(_RESAMPLES, len(array)))
    low, high = np.quantile(array[picks].mean(axis=1), [0.025, 0.975])
    return float(low), float(high)
