"""Which examples a step takes, and the runs on them.

Derived from (seed, step, position in the data) alone, so that a resumed training goes on with the same data.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from mmc.data import Example
from mmc.engine.base import Engine, seed_of
from mmc.mmgrpo.advantage import has_spread
from mmc.mmgrpo.group import Group
from mmc.program.graph import Program
from mmc.program.run import RunSettings, run_all
from mmc.program.trajectory import Trajectory
from mmc.spec.model import MmGrpo


@dataclass(frozen=True)
class Rollouts:
    """The runs of one step and their groups; ``position`` is where the next step takes its examples."""

    runs: tuple[Trajectory, ...]
    groups: tuple[Group, ...]
    position: int
    resampled: int = 0
    """Examples that came in the place of others whose groups had no spread."""


def take(examples: Sequence[Example], count: int, position: int, seed: int) -> tuple[list[Example], int]:
    """``count`` examples from ``position`` on in an endless line of shuffled epochs, and the position after them.

    They are distinct; where an epoch's end would repeat one, the next is taken instead.
    """
    count = min(count, len(examples))
    chosen: dict[str, Example] = {}
    while len(chosen) < count:
        epoch, offset = divmod(position, len(examples))
        example = _epoch(examples, epoch, seed)[offset]
        chosen.setdefault(example.id, example)
        position += 1
    return list(chosen.values()), position


def _epoch(examples: Sequence[Example], epoch: int, seed: int) -> list[Example]:
    shuffled = list(examples)
    random.Random(seed_of(seed, "epoch", epoch)).shuffle(shuffled)
    return shuffled


@dataclass(frozen=True)
class Sampler:
    """Runs the program being trained, and its teachers, and forms groups."""

    program: Program
    engines: Mapping[str, Engine]
    examples: Sequence[Example]
    config: MmGrpo
    seed: int
    group: Callable[[Sequence[Trajectory]], list[Group]]
    teach: Callable[[Sequence[Example], int], list[Trajectory]] = lambda examples, step: []
    """(examples, step) -> the runs of teachers."""
    on_done: Callable[[Trajectory], None] = lambda run: None
    """Hears of each of the program's own runs when it ends."""

    def sample(self, step: int, position: int) -> Rollouts:
        """The step's runs. With `resample`, examples without spread give way to others, a bounded number of times."""
        wanted = min(self.config.examples, len(self.examples))
        examples, position = take(self.examples, wanted, position, self.seed)
        runs = self._run(examples, step)
        kept, resampled = self._useful(runs), 0
        for _ in range(self.config.resample):
            missing = wanted - len(kept)
            if missing <= 0:
                break
            known = {t.example_id for t in runs}
            others, position = take(self.examples, missing, position, self.seed)
            others = [example for example in others if example.id not in known]
            resampled += len(others)
            more = self._run(others, step)
            runs, kept = [*runs, *more], [*kept, *self._useful(more)]
        return Rollouts(tuple(runs), tuple(self.group(runs)), position, resampled)

    def _run(self, examples: Sequence[Example], step: int) -> list[Trajectory]:
        config = self.config
        settings = RunSettings("weights", step, self.seed, config.temperature, tree=tuple(config.tree))
        own = run_all(self.program, self.engines, examples, settings, config.rollouts, self.on_done)
        return [*own, *self.teach(examples, step)]

    def _useful(self, runs: Sequence[Trajectory]) -> list[str]:
        """The examples that have a group with spread."""
        return list(dict.fromkeys(g.example_id for g in self.group(runs) if has_spread(g.rewards_C)))
