"""What stands where in a spec's steps and metric."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from mmc.spec import model
from mmc.spec.marks import KeyPath
from mmc.spec.metrics import WeightedMetric


def walk(steps: Sequence[model.Step]) -> Iterable[model.Step]:
    """All steps, those inside others too."""
    for step in steps:
        yield step
        if isinstance(step, model.IfStep):
            yield from walk([*step.steps, *step.else_])
        elif isinstance(step, model.RepeatStep | model.ForStep):
            yield from walk(step.steps)
        elif isinstance(step, model.ParallelStep):
            for branch in step.parallel:
                yield from walk(branch)


def called(steps: Sequence[model.Step]) -> set[str]:
    """The modules that steps call."""
    return {step.call for step in walk(steps) if isinstance(step, model.CallStep)}


def returns(steps: Sequence[model.Step]) -> list[Iterable[str]]:
    """The names that each return step gives."""
    return [step.return_ for step in walk(steps) if isinstance(step, model.ReturnStep)]


def metric_fields(metric: Any, field: str, path: KeyPath = ("metric",)) -> dict[str, KeyPath]:
    """The columns or outputs that a metric names, and where."""
    if metric is None:
        return {}
    if isinstance(metric, WeightedMetric):
        found: dict[str, KeyPath] = {}
        for i, part in enumerate(metric.of):
            found |= metric_fields(part.metric, field, (*path, "of", i, "metric"))
        return found
    name = getattr(metric, field, None)
    return {name: (*path, field)} if name else {}
