"""Outputs and an example in, a score in [0, 1] out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol


class Score(NamedTuple):
    """A score in [0, 1]; ``parts`` names the scores it was combined from."""

    value: float
    parts: Mapping[str, float] = {}


class Metric(Protocol):
    """Scores one finished run. Pure: equal arguments give equal scores."""

    def __call__(self, outputs: Mapping[str, Any], example: Mapping[str, Any]) -> Score:
        """The score of ``outputs`` (the program's) for ``example`` (one row of data)."""
        ...
