"""When a step's runs are drawn: in its turn, or ahead, while earlier steps train.

Drawn ahead, the runs of step t are sampled by the weights from before step t - `staleness`, no matter which side is the
faster one: how old they are is a number of the spec, and the same seed draws the same runs, resumed or not.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Protocol

from mmc.mmgrpo.policy import Learner, short
from mmc.mmgrpo.rollout import Rollouts, Sampler
from mmc.program.trajectory import Trajectory
from mmc.spec.model import MmGrpo


class DrawsElsewhere(Protocol):
    """An engine whose adapters may be trained while it samples."""

    def draw_with(self, folders: Mapping[str, Path]) -> None:
        """See :meth:`mmc.engine.vllm.VllmEngine.draw_with`."""
        ...


class InTurn:
    """A step's runs are drawn when it begins, by the weights as they are then."""

    def __init__(self, sampler: Sampler) -> None:
        self._sampler = sampler

    def age(self, step: int) -> int:
        """Steps by which the weights that sample for ``step`` are older than those it trains."""
        return 0

    def sample(self, step: int, position: int) -> Rollouts:
        """The runs of ``step``, on the examples from ``position`` on."""
        return self._sampler.sample(step, position)

    def go_on(self, step: int) -> None:
        """To be called between the runs of ``step`` and its update."""

    def settle(self) -> None:
        """To be called before the program is run for anything else."""

    def close(self) -> None:
        """Ends what is still being drawn."""


class Ahead(InTurn):
    """The runs of the next steps are drawn by servers, a step at a time, while this one trains.

    Adapters that sample are kept in ``folder`` as long as a resumed training may want them.
    """

    def __init__(self, sampler: Sampler, policy: Learner, config: MmGrpo, folder: Path) -> None:
        self._stopping = Event()
        super().__init__(replace(sampler, on_done=self._unless_stopping))
        self._policy, self._folder = policy, folder
        self._engine: DrawsElsewhere = policy.engine
        self._most, self._steps = config.staleness, config.steps
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="rollouts")
        self._ordered: dict[int, Future[Rollouts]] = {}

    def age(self, step: int) -> int:
        return min(step, self._most)

    def sample(self, step: int, position: int) -> Rollouts:
        if step not in self._ordered:  # the first, from the start or from a checkpoint
            if step == 0:
                self._keep(0)
            self._ordered[step] = self._thread.submit(self._draw, step, position)
        return self._ordered[step].result()

    def go_on(self, step: int) -> None:
        """Keeps the weights as they are, and orders the runs that they are to sample."""
        self._keep(step)
        before = self._ordered.pop(step)
        for later in range(step + 1, min(step + self._most, self._steps - 1) + 1):
            if later not in self._ordered:
                self._ordered[later] = self._thread.submit(self._draw_after, before, later)
            before = self._ordered[later]

    def settle(self) -> None:
        wait(self._ordered.values())
        self._engine.draw_with({})

    def close(self) -> None:
        self._stopping.set()
        self._thread.shutdown(cancel_futures=True)
        self._engine.draw_with({})

    def _keep(self, step: int) -> None:
        """Writes the weights from before ``step``'s update, and drops those that nothing will be sampled with again."""
        if not self._version(step).exists():
            self._policy.save(self._version(step))
        for old in self._folder.iterdir():
            if old < self._version(step - self._most):
                shutil.rmtree(old)

    def _version(self, step: int) -> Path:
        return self._folder / f"{max(0, step):06d}"

    # --- in the thread ---

    def _draw_after(self, before: Future[Rollouts], step: int) -> Rollouts:
        return self._draw(step, before.result().position)

    def _draw(self, step: int, position: int) -> Rollouts:
        version = self._version(step - self._most)
        self._engine.draw_with({name: version / short(name) for name in self._policy.names.values()})
        return self._sampler.sample(step, position)

    def _unless_stopping(self, run: Trajectory) -> None:
        if self._stopping.is_set():
            raise _Stopped


class _Stopped(Exception):
    """Nobody wants the runs any more."""
