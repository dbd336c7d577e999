"""Advantages: the rewards of a group's members -> how much better each was than the others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import sqrt
from typing import Literal

Normalization = Literal["std", "batch", "leave_one_out", "none"]
EPSILON = 1e-4
"""Keeps the division finite; as in TRL."""
Groups = Sequence[Sequence[float]]


def _centred(rewards_C: Sequence[float]) -> list[float]:
    mean = sum(rewards_C) / len(rewards_C)
    return [r - mean for r in rewards_C]


def _deviation(values: Sequence[float]) -> float:
    """Standard deviation (n - 1) around the mean; 0 for fewer than two values."""
    if len(values) < 2:
        return 0.0
    return sqrt(sum(c * c for c in _centred(values)) / (len(values) - 1))


def _none(groups: Groups) -> list[list[float]]:
    """Rewards less their group's mean (arXiv 2503.20783)."""
    return [_centred(rewards_C) for rewards_C in groups]


def _std(groups: Groups) -> list[list[float]]:
    """... divided by the group's standard deviation (arXiv 2402.03300)."""
    found = []
    for rewards_C in groups:
        scale = _deviation(rewards_C) + EPSILON
        found.append([c / scale for c in _centred(rewards_C)])
    return found


def _batch(groups: Groups) -> list[list[float]]:
    """... divided by the standard deviation of all rewards of the step (arXiv 2508.08221)."""
    scale = _deviation([r for rewards_C in groups for r in rewards_C]) + EPSILON
    return [[c / scale for c in _centred(rewards_C)] for rewards_C in groups]


def _leave_one_out(groups: Groups) -> list[list[float]]:
    """Rewards less the mean of the other members' (RLOO, arXiv 2402.14740)."""
    return [[c * len(r_C) / max(1, len(r_C) - 1) for c in _centred(r_C)] for r_C in groups]


NORMALIZATIONS: Mapping[Normalization, Callable[[Groups], list[list[float]]]] = {
    "std": _std,
    "batch": _batch,
    "leave_one_out": _leave_one_out,
    "none": _none,
}
"""Name in the spec -> rewards of all groups of a step -> their advantages. To add one, add it here and to its name's type."""


def advantages(groups: Groups, normalize: Normalization = "std") -> list[list[float]]:
    """The advantages of every group's members. A group of one gets 0."""
    return NORMALIZATIONS[normalize](groups)


def has_spread(rewards_C: Sequence[float]) -> bool:
    """Whether a group carries any gradient."""
    return max(rewards_C) - min(rewards_C) > 1e-9
