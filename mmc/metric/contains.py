"""Share of the gold texts that stand in the output, or that do not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmc.metric.base import NONE, Metric, Score, Verdicts
from mmc.spec.load import LoadedSpec
from mmc.spec.marks import KeyPath
from mmc.spec.metrics import ContainsMetric


def make_contains(loaded: LoadedSpec, path: KeyPath, config: ContainsMetric, trust: bool) -> Metric:
    """The metric of a ``type: contains`` block. Where there are no gold texts the score is 1."""

    def score(outputs: Mapping[str, Any], example: Mapping[str, Any], verdicts: Verdicts = NONE) -> Score:
        text, gold = _plain(outputs[config.predicted]), example[config.gold]
        wanted = {_plain(one) for one in (gold if isinstance(gold, list | tuple) else [gold])} - {""}
        right = sum((one in text) != config.absent for one in wanted)
        return Score(right / len(wanted) if wanted else 1.0)

    return score


def _plain(value: Any) -> str:
    text = " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return " ".join(text.casefold().split())
