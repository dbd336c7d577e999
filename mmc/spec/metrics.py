"""The blocks of metrics: a program's outputs and a row of data -> a score in [0, 1]."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from mmc.spec.keys import Keys, Name


class ExactMetric(Keys):
    """1 when the output equals the gold value, else 0."""

    type: Literal["exact"]
    predicted: str
    """A program output."""
    gold: str
    """A column of the data."""
    normalize: bool = True
    """Compare without case and surrounding white space."""


class F1Metric(Keys):
    """Token F1 between output and gold text, as in SQuAD. The texts of a list count as one."""

    type: Literal["f1"]
    predicted: str
    """A program output: a text, or a list of texts."""
    gold: str
    """A column of the data: a text, or a list of texts."""


class RecallMetric(Keys):
    """Share of the gold list that is in the output list."""

    type: Literal["recall"]
    predicted: str
    """A program output that is a list."""
    gold: str
    """A column of the data that holds a list."""


class ContainsMetric(Keys):
    """Share of the gold texts that stand in the output, whatever their case and white space."""

    type: Literal["contains"]
    predicted: str
    """A program output: the text that is looked through."""
    gold: str
    """A column of the data: a text, or a list of texts, to look for."""
    absent: bool = False
    """The share of those that do not stand in it instead: what must not leak."""


class JudgeMetric(Keys):
    """What a module says of the outputs: an LM as a judge. No step calls that module, and it is not trained."""

    type: Literal["judge"]
    module: Name
    """The module that judges; its inputs are what it is shown."""
    with_: dict[Name, Any] = Field(default={}, alias="with")
    """Inputs of the module, as expressions over the program's outputs and the columns of the data; one that is left out is
    the output or column of the same name. `example` is the whole row, for a column that has an output's name."""
    output: Name | None = None
    """Which of the module's outputs is the verdict, a bool or a number; may be left out when there is one."""
    out_of: float = Field(1.0, gt=0)
    """The best number; it counts as 1."""


class PythonMetric(Keys):
    """A Python function of (outputs, example) that returns a number in [0, 1]. Needs --trust."""

    type: Literal["python"]
    function: str = Field(pattern=r"^[\w.]+:[\w.]+$")
    """`package.module:function`; modules beside the spec are found too."""
    # It decides whether there is a score, not what it is, so no result of a compile depends on it.
    timeout: float = Field(60.0, gt=0, exclude=True)
    """Seconds after which a run counts as failed because its score is not there."""


class WeightedPart(Keys):
    """One part of a weighted metric."""

    name: Name
    """Names the part in scores and reports."""
    weight: float
    """What its score is multiplied with; negative for a penalty."""
    metric: Metric
    """Any metric, another sum included."""


class WeightedMetric(Keys):
    """Weighted sum of metrics, clipped to [0, 1]. A negative weight is a penalty."""

    type: Literal["weighted"]
    of: list[WeightedPart] = Field(min_length=1)
    """The parts of the sum."""


Metric = Annotated[
    ExactMetric | F1Metric | RecallMetric | ContainsMetric | JudgeMetric | PythonMetric | WeightedMetric,
    Field(discriminator="type"),
]

for _model in (WeightedPart, WeightedMetric):
    _model.model_rebuild()


def judges_of(metric: object, path: tuple[str | int, ...] = ("metric",)) -> dict[tuple[str | int, ...], JudgeMetric]:
    """The judges in a metric, by the key path of their blocks."""
    if isinstance(metric, JudgeMetric):
        return {path: metric}
    found: dict[tuple[str | int, ...], JudgeMetric] = {}
    if isinstance(metric, WeightedMetric):
        for i, part in enumerate(metric.of):
            found |= judges_of(part.metric, (*path, "of", i, "metric"))
    return found
