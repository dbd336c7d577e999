"""A Python function as a metric."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import wait
from typing import Any

from mmc.errors import RunFailure
from mmc.metric.base import NONE, Metric, Score, Verdicts
from mmc.spec.function import import_function, started
from mmc.spec.load import LoadedSpec
from mmc.spec.marks import KeyPath
from mmc.spec.metrics import PythonMetric


def make_python(loaded: LoadedSpec, path: KeyPath, config: PythonMetric, trust: bool) -> Metric:
    """The metric of a ``type: python`` block."""
    function = import_function(loaded, (*path, "function"), config.function, trust)

    def score(outputs: Mapping[str, Any], example: Mapping[str, Any], verdicts: Verdicts = NONE) -> Score:
        work = started(function, dict(outputs), dict(example))
        if not wait([work], config.timeout).done:
            raise RunFailure(f"the metric {config.function} gave no score within {config.timeout:g} s")
        value = work.result()
        if not isinstance(value, int | float) or not 0 <= value <= 1:
            raise RunFailure(f"the metric {config.function} gave {value!r}, not a number in [0, 1]")
        return Score(float(value))

    return score
