"""An LM's verdict on the outputs. Asking is the runner's part (:mod:`mmc.program.judge`); here it becomes a score."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmc.metric.base import NONE, Metric, Score, Verdicts
from mmc.spec.load import LoadedSpec
from mmc.spec.marks import KeyPath
from mmc.spec.metrics import JudgeMetric


def make_judge(loaded: LoadedSpec, path: KeyPath, config: JudgeMetric, trust: bool) -> Metric:
    """The metric of a ``type: judge`` block."""

    def score(outputs: Mapping[str, Any], example: Mapping[str, Any], verdicts: Verdicts = NONE) -> Score:
        return Score(verdicts[path])

    return score
