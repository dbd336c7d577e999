"""The score of a program on examples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from mmc.data import Example
from mmc.engine.base import Engine
from mmc.metric import Interval, interval
from mmc.program.graph import Program
from mmc.program.run import RunSettings, run_all
from mmc.program.trajectory import Trajectory


@dataclass(frozen=True)
class Evaluation:
    """One run of every example."""

    trajectories: tuple[Trajectory, ...]

    @property
    def scores(self) -> tuple[float, ...]:
        return tuple(t.reward for t in self.trajectories)

    @cached_property
    def interval(self) -> Interval:
        return interval(self.scores)

    @property
    def failures(self) -> Mapping[str, int]:
        """How many runs ended otherwise than done, by ending."""
        return dict(sorted(Counter(t.ending for t in self.trajectories if t.ending != "done").items()))


def evaluate(
    program: Program,
    engines: Mapping[str, Engine],
    examples: Sequence[Example],
    settings: RunSettings,
    on_done: Callable[[Trajectory], None] | None = None,
    traces: bool = True,
) -> Evaluation:
    """Runs every example once. An interrupted run scores 0. Without ``traces``, only scores and endings are kept of each run."""

    def done(trajectory: Trajectory) -> Trajectory:
        if on_done is not None:
            on_done(trajectory)
        return trajectory if traces else replace(trajectory, calls=(), tools=(), judged=(), outputs=None)

    return Evaluation(tuple(run_all(program, engines, examples, settings, on_done=done)))
