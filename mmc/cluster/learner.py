"""Training over the workers. Each computes the gradient of its part, the sums are the whole batch's, and all make the same step.

The driver keeps the state after every step, from the first worker: checkpoints are written from it, and a worker that is new, or
whose step was broken off by another's death, goes on from it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

from mmc.cluster.orders import LearnerState, Place, Plan, Pushed, Updated, UpdateOrder
from mmc.cluster.pool import Lost, Member, Pool
from mmc.cluster.worker import read_files
from mmc.engine.base import Engine
from mmc.files import whole_folder
from mmc.mmgrpo.imitate import Sentence
from mmc.mmgrpo.policy import short
from mmc.mmgrpo.share import cut
from mmc.mmgrpo.update import TrainingCall, UpdateReport
from mmc.program.graph import Program
from mmc.spec.model import Distill, MmGrpo, Tuning

PLAN = "the plan of the training"
STATE = "the trained weights and the optimizer's state"


class ClusterLearner:
    """Implements :class:`mmc.mmgrpo.policy.Learner`. ``plan``: as for :func:`mmc.mmgrpo.policy.make_policy`, and its number.

    Raises UsageError when nothing can be trained.
    """

    def __init__(
        self,
        pool: Pool,
        engines: Mapping[str, Engine],
        program: Program,
        plan: tuple[Tuning, str, int, Mapping[str, Path], int],
    ) -> None:
        config, label, seed, initial, number = plan
        keys = {folder: str(i) for i, folder in enumerate(dict.fromkeys(initial.values()))}
        folders = {key: read_files(folder) for folder, key in keys.items()}
        made = Plan(config, label, seed, {module: keys[folder] for module, folder in initial.items()}, folders)
        size = sum(len(data) for files in folders.values() for data in files.values())
        self._pool, self._engines, self._program = pool, engines, program
        self._plan = pool.push(PLAN, f"{number}", made, size)
        self._versions = count(1)
        self._rate = (0.0, 1.0)
        self._current: Sequence[Member] = ()
        """Workers that have the present state, bit for bit, because they made the last step."""
        self._pushed: Pushed | None = None
        self.last: Mapping[int, Updated] = {}
        """What the workers gave in the last step."""
        self.names, self._state = self._begun()

    def _begun(self) -> tuple[dict[str, str], LearnerState]:
        names, state = self._pool.ask(0, "begin", Place(self._plan, None), what="making the adapters")
        self._version = self._next_version()
        return names, state

    def _next_version(self) -> str:
        return f"{self._plan.version}.{next(self._versions)}"

    @property
    def engine(self) -> Any:
        """The trained modules' model, as the driver has it."""
        return self._engines[self._program.spec.modules[next(iter(self.names))].model]

    def place(self, worker: int) -> Place:
        """Where the training stands, for an order to a worker."""
        if self._pool.members[worker] in self._current:
            return Place(self._plan, Pushed(STATE, self._version, (), 0))
        if self._pushed is None:
            self._pushed = self._pool.push(STATE, f"{self._version} pushed", self._state, self._state.size)
        return Place(self._plan, self._pushed)

    def set_rate(self, rate: float, base: float) -> None:
        self._rate = (rate, base)

    def training_tokens(self) -> int:
        """Of the worker that has the least memory free."""
        what = "asking for free memory"
        for _ in self._pool.attempts(what):
            try:
                members = range(len(self._pool))
                places = {number: (self.place(number), self._pool.neighbours(number)) for number in members}
                return int(min(self._pool.gather(places, "training_tokens", what).values()))
            except Lost as lost:
                self._pool.replace(lost)
        raise AssertionError  # the last attempt raises

    def update(self, calls: Sequence[TrainingCall], config: MmGrpo, seed: int) -> UpdateReport:
        return self._step(calls, config, seed) if calls else UpdateReport()

    def imitate(self, sentences: Sequence[Sentence], config: Distill, seed: int) -> tuple[float, float]:
        report = self._step(sentences, config, seed)
        return report.loss, report.grad_norm

    def _step(self, batch: Sequence[Any], config: Tuning, seed: int) -> UpdateReport:
        """The step, again from its beginning when a worker dies in it: until all have made it, it has not been made."""
        parts: list[list[Any]] = cut(batch, len(self._pool))
        what = f"an update over {len(batch)} calls"
        for _ in self._pool.attempts(what):
            becomes = self._next_version()
            try:
                meeting = self._pool.meeting()
                orders = {
                    n: (UpdateOrder(self.place(n), becomes, meeting, n, self._rate, part, config, seed),)
                    for n, part in enumerate(parts)
                }
                self._current = ()  # until all have made it, nobody's tensors are sure
                self.last = self._pool.gather(orders, "update", what)
                break
            except Lost as lost:
                self._pool.replace(lost)
        first = self.last[0]
        assert first.state is not None
        self._state, self._version, self._pushed = first.state, becomes, None
        members = self._pool.members
        self._current = [members[n] for n, one in self.last.items() if one.digest == first.digest]
        return total([self.last[number].report for number in sorted(self.last)])

    # --- checkpoints ---

    def save(self, folder: Path) -> dict[str, Path]:
        with whole_folder(folder) as new:
            for name, files in self._state.adapters.items():
                (new / name).mkdir(parents=True)
                for file, data in files.items():
                    (new / name / file).write_bytes(data)
        return {module: folder / short(name) for module, name in self.names.items()}

    def load(self, folder: Path) -> None:
        adapters = {name: read_files(folder / name) for name in self._state.adapters}
        self._set(replace(self._state, adapters=adapters))

    def save_optimizer(self, file: Path) -> None:
        file.write_bytes(self._state.optimizer)

    def load_optimizer(self, file: Path) -> None:
        self._set(replace(self._state, optimizer=file.read_bytes()))

    def _set(self, state: LearnerState) -> None:
        self._state, self._version, self._pushed, self._current = state, self._next_version(), None, ()


def total(reports: Sequence[UpdateReport]) -> UpdateReport:
    """One report of parts: sums, the largest drift, and the gradient's norm, which is the same in all."""
    found = replace(reports[0])
    for one in reports[1:]:
        for name in ("loss", "tokens", "packed", "entropy", "kl", "clipped"):
            setattr(found, name, getattr(found, name) + getattr(one, name))
        found.drift = max(found.drift, one.drift)
    return found
