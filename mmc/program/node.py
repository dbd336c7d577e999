"""The nodes of a program's graph: a spec's steps with their expressions compiled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mmc.program.expression import Expression, compile_value
from mmc.spec import model
from mmc.spec.marks import KeyPath
from mmc.spec.metrics import judges_of


@dataclass(frozen=True)
class CallNode:
    module: str
    inputs: Mapping[str, Expression]
    name: str


@dataclass(frozen=True)
class ToolNode:
    tool: str
    arguments: Mapping[str, Expression]
    name: str


@dataclass(frozen=True)
class SetNode:
    values: Mapping[str, Expression]


@dataclass(frozen=True)
class IfNode:
    condition: Expression
    then: tuple[Node, ...]
    otherwise: tuple[Node, ...]


@dataclass(frozen=True)
class RepeatNode:
    times: int
    until: Expression | None
    body: tuple[Node, ...]


@dataclass(frozen=True)
class ForNode:
    name: str
    items: Expression
    body: tuple[Node, ...]


@dataclass(frozen=True)
class ParallelNode:
    branches: tuple[tuple[Node, ...], ...]


@dataclass(frozen=True)
class ReturnNode:
    values: Mapping[str, Expression]


EXAMPLE = "example"
"""What a judge's expressions call the row of data, for columns that have an output's name."""


@dataclass(frozen=True)
class JudgeNode:
    """An LM judge of the metric; ``path`` is the key path of its block."""

    path: KeyPath
    module: str
    inputs: Mapping[str, Expression]
    output: str
    out_of: float


Node = CallNode | ToolNode | SetNode | IfNode | RepeatNode | ForNode | ParallelNode | ReturnNode


def _compiled(values: Mapping[str, object]) -> dict[str, Expression]:
    return {name: compile_value(value) for name, value in values.items()}


def make_nodes(steps: Sequence[model.Step], spec: model.Spec) -> tuple[Node, ...]:
    """The nodes of a list of steps. Raises jinja2.TemplateSyntaxError; :mod:`mmc.program.check` says where."""
    return tuple(make_node(step, spec) for step in steps)


def make_node(step: model.Step, spec: model.Spec) -> Node:
    """The node of one step."""
    match step:
        case model.CallStep():
            return CallNode(step.call, _inputs_of(spec, step.call, step.with_), step.as_ or step.call)
        case model.ToolStep():
            return ToolNode(step.tool, _compiled(step.with_), step.as_ or step.tool)
        case model.SetStep():
            return SetNode(_compiled(step.set))
        case model.IfStep():
            return IfNode(compile_value(step.if_), make_nodes(step.steps, spec), make_nodes(step.else_, spec))
        case model.RepeatStep():
            until = compile_value(step.until) if step.until is not None else None
            return RepeatNode(step.repeat, until, make_nodes(step.steps, spec))
        case model.ForStep():
            name, items = next(iter(step.for_.items()))
            return ForNode(name, compile_value(items), make_nodes(step.steps, spec))
        case model.ParallelStep():
            return ParallelNode(tuple(make_nodes(branch, spec) for branch in step.parallel))
        case model.ReturnStep():
            return ReturnNode(_compiled(step.return_))
    raise TypeError(type(step).__name__)


def make_judges(spec: model.Spec) -> tuple[JudgeNode, ...]:
    """The LM judges of a spec's metric."""
    return tuple(
        JudgeNode(
            path=path,
            module=judge.module,
            inputs=_inputs_of(spec, judge.module, judge.with_),
            output=judge.output or next(iter(spec.modules[judge.module].outputs)),
            out_of=judge.out_of,
        )
        for path, judge in judges_of(spec.metric).items()
    )


def _inputs_of(spec: model.Spec, module: str, given: Mapping[str, object]) -> dict[str, Expression]:
    """A module's inputs; one that is not given is the variable of its name."""
    return _compiled({**{name: f"{{{{ {name} }}}}" for name in spec.modules[module].inputs}, **given})
