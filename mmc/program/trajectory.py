"""What one run of a program leaves behind."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from mmc.engine.base import Completion, Message

Ending = Literal["done", "unparsed", "cut", "tool_failed", "limit", "timeout", "failed"]
"""How a run ended: done; a completion that could not be parsed; one cut at the token limit; a tool that failed; a limit
of the program; a time-out; a program step that failed otherwise (an expression, say)."""


@dataclass(frozen=True)
class Call:
    """One LM call inside a run. ``index`` is its order among the calls of the same module (the paper's k)."""

    module: str
    index: int
    inputs: Mapping[str, Any]
    messages: tuple[Message, ...]
    completion: Completion
    outputs: Mapping[str, Any] | None
    """The parsed outputs; None when the completion could not be parsed."""
    error: str | None = None
    readable: float = 1.0
    """Share of the outputs that could be read."""
    path: tuple[int, ...] = ()
    """In a tree of runs, the branches taken up to this call; runs that agree here made this call together."""
    branches: bool = False
    """Whether its siblings, drawn from the same state, are among the runs."""


@dataclass(frozen=True)
class ToolUse:
    """One tool call inside a run: what went in and what came out, or the error."""

    tool: str
    inputs: Mapping[str, Any]
    result: Any = None
    error: str | None = None


@dataclass(frozen=True)
class Trajectory:
    """All calls of one run of a program on one example, its outputs, its reward and how it ended.

    ``reward`` is the metric's score in [0, 1] when the run is done, and 0.0 when it was interrupted; training
    substitutes the failure and format rewards it is configured with.
    """

    example_id: str
    rollout: int
    calls: tuple[Call, ...]
    outputs: Mapping[str, Any] | None
    reward: float
    ending: Ending
    error: str | None = None
    tools: tuple[ToolUse, ...] = ()
    scores: Mapping[str, float] = field(default_factory=dict)
    """Named parts of the reward, for a combined metric."""
    judged: tuple[Call, ...] = ()
    """Calls of the metric's LM judges; no part of the run."""


def all_calls(runs: Iterable[Trajectory]) -> Iterator[Call]:
    """The calls of runs, and those of their judges."""
    return (call for run in runs for call in (*run.calls, *run.judged))


def call_identity(run: Trajectory, call: Call) -> tuple[object, ...]:
    """What tells calls apart: runs of a tree that agree up to a call made it together."""
    if call.path:
        return (run.example_id, call.module, call.index, call.path, call.completion.ids_T)
    return (run.example_id, call.module, call.index, run.rollout)
