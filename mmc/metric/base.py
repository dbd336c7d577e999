"""Outputs and an example in, a score in [0, 1] out."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol


class Score(NamedTuple):
    """A score in [0, 1]; ``parts`` names the scores it was combined from."""

    value: float
    parts: Mapping[str, float] = {}


Verdicts = Mapping[tuple[str | int, ...], float]
"""What the judges of a metric said, in [0, 1], by the key path of their blocks."""
NONE: Verdicts = MappingProxyType({})
"""No verdicts: the metric has no judges."""


class Metric(Protocol):
    """Scores one finished run. Pure: equal arguments give equal scores; LM judges are asked before."""

    def __call__(self, outputs: Mapping[str, Any], example: Mapping[str, Any], verdicts: Verdicts = NONE, /) -> Score:
        """The score of ``outputs`` (the program's) for ``example`` (one row of data)."""
        ...
