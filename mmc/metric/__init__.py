"""Metrics: a program's outputs and a row of data -> a score in [0, 1].

To add one: its block as a pydantic model in :mod:`mmc.spec.metrics`, a file here with a function that makes a
:class:`mmc.metric.base.Metric` from it, and an entry in ``METRICS``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from mmc.errors import InvalidError
from mmc.metric.base import NONE, Metric, Score, Verdicts
from mmc.metric.contains import make_contains
from mmc.metric.exact import make_exact
from mmc.metric.f1 import make_f1
from mmc.metric.interval import Interval, interval, paired
from mmc.metric.judge import make_judge
from mmc.metric.python import make_python
from mmc.metric.recall import make_recall
from mmc.spec.load import LoadedSpec
from mmc.spec.marks import KeyPath

__all__ = ["METRICS", "Interval", "Metric", "Score", "Verdicts", "interval", "make_metric", "make_shaping", "paired"]


def _weighted(loaded: LoadedSpec, path: KeyPath, config: Any, trust: bool) -> Metric:
    parts = [
        (part.name, part.weight, _make(loaded, (*path, "of", i, "metric"), part.metric, trust))
        for i, part in enumerate(config.of)
    ]

    def score(outputs: Mapping[str, Any], example: Mapping[str, Any], verdicts: Verdicts = NONE) -> Score:
        values = {name: metric(outputs, example, verdicts).value for name, _, metric in parts}
        total = sum(weight * values[name] for name, weight, _ in parts)
        return Score(min(1.0, max(0.0, total)), values)

    return score


METRICS: Mapping[str, Callable[[LoadedSpec, KeyPath, Any, bool], Metric]] = {
    "exact": make_exact,
    "f1": make_f1,
    "recall": make_recall,
    "contains": make_contains,
    "judge": make_judge,
    "python": make_python,
    "weighted": _weighted,
}
"""The spec's ``type`` of a metric -> a function of (spec, key path, its block, trust) that makes it."""


def _make(loaded: LoadedSpec, path: KeyPath, config: Any, trust: bool) -> Metric:
    return METRICS[config.type](loaded, path, config, trust)


def make_shaping(loaded: LoadedSpec, trust: bool) -> dict[str, tuple[tuple[float, Metric], ...]]:
    """For each module with shaping, its metrics and their weights."""
    return {
        module: tuple(
            (part.weight, _make(loaded, ("shaping", module, i, "metric"), part.metric, trust))
            for i, part in enumerate(parts)
        )
        for module, parts in loaded.spec.shaping.items()
    }


def make_metric(loaded: LoadedSpec, trust: bool) -> Metric:
    """The metric of a spec. Raises InvalidError when it has none."""
    if loaded.spec.metric is None:
        raise InvalidError(
            [loaded.diagnostic((), "the spec has no `metric`", "add metric: {type: exact, predicted: ..., gold: ...}")]
        )
    return _make(loaded, ("metric",), loaded.spec.metric, trust)
