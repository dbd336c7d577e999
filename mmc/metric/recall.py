"""Share of the gold list that the output list holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmc.metric.base import NONE, Metric, Score, Verdicts
from mmc.spec.load import LoadedSpec
from mmc.spec.marks import KeyPath
from mmc.spec.metrics import RecallMetric


def make_recall(loaded: LoadedSpec, path: KeyPath, config: RecallMetric, trust: bool) -> Metric:
    """The metric of a ``type: recall`` block."""

    def score(outputs: Mapping[str, Any], example: Mapping[str, Any], verdicts: Verdicts = NONE) -> Score:
        gold = {str(item) for item in example[config.gold]}
        found = {str(item) for item in outputs[config.predicted]}
        return Score(len(gold & found) / len(gold) if gold else 1.0)

    return score
