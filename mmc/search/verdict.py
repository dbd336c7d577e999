"""Whether the best candidate is really better than the start, or only the luckiest of many.

The candidate was chosen for its scores on the very examples it is judged on, so the largest of K gains would often
look significant by itself. Therefore: a one-sided sign-flip test of the paired differences (for scores of 0 and 1 that
is the exact McNemar test), at a level of 5% divided by the number of candidates tried (Bonferroni). When no candidate
is better than the start, it is replaced in at most one search in twenty; a true gain must exceed about 2.6 standard
errors at the default of twelve candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb, fsum

from mmc.metric import Interval, paired

LEVEL = 0.05
"""Highest chance that a search replaces the start when no candidate is better."""
_FLIPS = 20_000


@dataclass(frozen=True)
class Verdict:
    """The judgement on the finalist: ``better`` when its gain is more than noise explains."""

    better: bool
    difference: Interval
    p: float
    """Chance of a gain this large when finalist and start are equally good."""
    level: float
    """What ``p`` must not exceed."""


def judge(start: Sequence[float], finalist: Sequence[float], tried: int) -> Verdict:
    """Compares paired scores of the start and of the best of ``tried`` candidates on the same examples."""
    difference, level = paired(start, finalist), LEVEL / max(1, tried)
    p = sign_flip([b - a for a, b in zip(start, finalist, strict=True)])
    return Verdict(difference.mean > 0 and p <= level, difference, p, level)


def sign_flip(differences: Sequence[float]) -> float:
    """One-sided p-value of the sum being this large when every difference could as well have had the other sign.

    Exact when all differences that are not 0 have one size, else from 20,000 draws with a fixed seed.
    """
    sizes = [abs(d) for d in differences if abs(d) > 1e-12]
    if not sizes:
        return 1.0
    if max(sizes) - min(sizes) < 1e-12:
        wins = sum(d > 1e-12 for d in differences)
        return float(sum(comb(len(sizes), k) for k in range(wins, len(sizes) + 1)) / (1 << len(sizes)))
    return _drawn(sizes, fsum(differences))


def _drawn(sizes: Sequence[float], total: float) -> float:
    import numpy as np

    generator, array = np.random.default_rng(0), np.asarray(sizes)
    reached, step = 0, 1000
    for _ in range(_FLIPS // step):
        signs = generator.integers(0, 2, size=(step, len(array)), dtype=np.int8) * 2.0 - 1.0
        reached += int((signs @ array >= total - 1e-9).sum())
    return (1 + reached) / (1 + _FLIPS)
