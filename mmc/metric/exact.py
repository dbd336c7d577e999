"""1 when the output equals the gold value."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmc.metric.base import NONE, Metric, Score, Verdicts
from mmc.spec.load import LoadedSpec
from mmc.spec.marks import KeyPath
from mmc.spec.metrics import ExactMetric


def make_exact(loaded: LoadedSpec, path: KeyPath, config: ExactMetric, trust: bool) -> Metric:
    """The metric of a ``type: exact`` block."""

    def score(outputs: Mapping[str, Any], example: Mapping[str, Any], verdicts: Verdicts = NONE) -> Score:
        predicted, gold = outputs[config.predicted], example[config.gold]
        if config.normalize and isinstance(predicted, str):
            return Score(float(predicted.strip().lower() == str(gold).strip().lower()))
        return Score(float(predicted == gold or str(predicted) == str(gold)))

    return score
