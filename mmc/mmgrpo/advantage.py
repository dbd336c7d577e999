"""Advantages inside one group."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from typing import Literal

Normalization = Literal["std", "none"]
EPSILON = 1e-4
"""Keeps the division finite; as in TRL."""


def advantages(rewards_C: Sequence[float], normalize: Normalization = "std") -> list[float]:
    """Rewards less their mean; divided by their standard deviation (n - 1) for ``std``. One member gives 0."""
    mean = sum(rewards_C) / len(rewards_C)
    centred = [r - mean for r in rewards_C]
    if normalize == "none" or len(rewards_C) < 2:
        return centred
    deviation = sqrt(sum(c * c for c in centred) / (len(centred) - 1))
    return [c / (deviation + EPSILON) for c in centred]


def has_spread(rewards_C: Sequence[float]) -> bool:
    """Whether a group carries any gradient."""
    return max(rewards_C) - min(rewards_C) > 1e-9
