"""Engines whose work is done by workers: runs of programs, training. What the driver itself asks a model, it asks here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from itertools import count, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmc.cluster.orders import Pushed, RunOrder
from mmc.cluster.pool import Lost, Pool
from mmc.cluster.worker import read_files
from mmc.data import Example
from mmc.engine import open_engine
from mmc.engine.base import Completion, Engine, Message, Request, Spent, Watch
from mmc.program.graph import Program
from mmc.program.run import RunSettings, run_all
from mmc.program.trajectory import Trajectory, all_calls
from mmc.prompt import Template
from mmc.spec.load import LoadedSpec
from mmc.spec.model import LocalModel, Tuning

if TYPE_CHECKING:
    from mmc.cluster.learner import ClusterLearner


class HeadEngine:
    """A model of the spec as the driver has it: opened only when the driver itself asks it something, as a proposer, a teacher
    or to score again. Implements :class:`mmc.engine.base.Engine`.
    """

    def __init__(self, loaded: LoadedSpec, name: str, pool: Pool) -> None:
        self._loaded, self._name, self._pool = loaded, name, pool
        self._own: Any = None
        self._clients: list[ExitStack] = []
        self._finished: dict[str, Path] = {}
        self._pushed: dict[str, Pushed] = {}
        self._number = count(1)
        self.spent = Spent()
        self.kept = 0
        """How many want prompts' beginnings kept."""

    @property
    def _here(self) -> Any:
        if self._own is None:
            self._own = open_engine(self._loaded, self._name)
            self._own.spent = self.spent
            for stack in self._clients:
                stack.enter_context(self._own.client())
            for name, folder in self._finished.items():
                self._own.adapters.load(name, folder)
        return self._own

    @property
    def width(self) -> int | None:
        config = self._loaded.spec.models[self._name]
        return None if isinstance(config, LocalModel) else config.concurrency

    async def complete(self, request: Request, watch: Watch | None = None) -> Completion:
        found: Completion = await self._here.complete(request, watch)
        return found

    @contextmanager
    def client(self) -> Iterator[None]:
        with ExitStack() as stack:
            if self._own is not None:
                stack.enter_context(self._own.client())
            self._clients.append(stack)
            try:
                yield
            finally:
                self._clients.remove(stack)

    @contextmanager
    def keeping(self) -> Iterator[None]:
        self.kept += 1
        try:
            yield
        finally:
            self.kept -= 1

    @contextmanager
    def serving(self) -> Iterator[None]:
        with self._here.serving():
            yield

    @contextmanager
    def elsewhere(self) -> Iterator[None]:
        with self._own.elsewhere() if self._own is not None else nullcontext():
            yield

    def count_tokens(self, messages: Sequence[Message]) -> int:
        found: int = self._pool.ask(0, "count_tokens", self._name, list(messages), what="counting tokens")
        return found

    def encode(self, request: Request, text: str, ended: bool = True) -> Completion:
        """As :meth:`mmc.engine.local.LocalEngine.encode`."""
        found: Completion = self._here.encode(request, text, ended)
        return found

    def close(self) -> None:
        """Ends the workers, too."""
        if self._own is not None:
            self._own.close()
        self._pool.close()

    # --- adapters ---

    @property
    def adapters(self) -> HeadEngine:
        """As of a local engine; finished adapters are loaded by workers that run with them."""
        return self

    def load(self, name: str, folder: Path) -> None:
        """Makes what is saved in ``folder`` known under ``name``."""
        files = read_files(folder)
        size = sum(map(len, files.values()))
        self._finished[name] = folder
        self._pushed[name] = self._pool.push(name, f"{next(self._number)}", files, size, self._name)
        if self._own is not None:
            self._own.adapters.load(name, folder)

    def pushed(self, names: Sequence[str | None]) -> list[Pushed]:
        """Those of ``names`` that are finished adapters of this model."""
        return [self._pushed[name] for name in dict.fromkeys(names) if name in self._pushed]


class ClusterEngines(dict[str, Engine]):
    """Every model's name -> how the driver asks it; and the workers, which make whole runs and train."""

    def __init__(self, loaded: LoadedSpec, names: Sequence[str], pool: Pool) -> None:
        opened: dict[str, HeadEngine] = {}
        for name in names:
            block = loaded.spec.models[name].model_dump_json()
            opened.setdefault(block, HeadEngine(loaded, name, pool))
            self[name] = opened[block]
        self.heads = list(opened.values())
        self.loaded, self.pool = loaded, pool
        self._learner: ClusterLearner | None = None
        self._plans = count(1)

    def run_all(
        self,
        program: Program,
        examples: Sequence[Example],
        settings: RunSettings,
        rollouts: int,
        on_done: Callable[[Trajectory], Trajectory | None] | None,
    ) -> list[Trajectory]:
        """As :func:`mmc.program.run.run_all`: every example's runs by one worker, so that it computes what they share once.

        What a worker gave before it died stays; the rest is run again, by whoever is there. Another spec's program is run here.
        """
        if program.loaded.sha256 != self.loaded.sha256:
            return run_all(program, dict(self), examples, settings, rollouts, on_done)
        found: dict[tuple[str, int], Trajectory] = {}
        known = {example.id: example for example in examples}
        what = f"{len(known) * rollouts} runs ({settings.stage}, step {settings.step})"
        for _ in self.pool.attempts(what):
            left = [one for one in known.values() if any((one.id, r) not in found for r in range(rollouts))]
            try:
                for run in self.pool.stream(self._orders(program, left, settings, rollouts), what):
                    if (run.example_id, run.rollout) not in found:
                        self._count(program, run)
                        kept = on_done(run) if on_done is not None else None
                        found[run.example_id, run.rollout] = kept or run
                break
            except Lost as lost:
                self.pool.replace(lost)
        return [found[example.id, rollout] for example in examples for rollout in range(rollouts)]

    def _orders(
        self, program: Program, examples: Sequence[Example], settings: RunSettings, rollouts: int
    ) -> dict[int, RunOrder]:
        """Worker -> its share of the examples, neighbours together."""
        names = list(program.adapters.values())
        # Fresh ones: what a template has worked out of its source cannot be sent.
        templates = {name: Template(found.path, found.source) for name, found in program.templates.items()}
        learner = self._learner
        trained = learner is not None and any(name in learner.names.values() for name in names)
        finished = [one for head in self.heads for one in head.pushed(names)]
        orders = {}
        for number, share in enumerate(shares(examples, len(self.pool))):
            if share:
                orders[number] = RunOrder(
                    knobs=program.settings,
                    templates=templates,
                    adapters=program.adapters,
                    pushed=finished,
                    place=learner.place(number) if learner is not None and trained else None,
                    examples=share,
                    settings=settings,
                    rollouts=rollouts,
                    keep=any(head.kept for head in self.heads),
                )
        return orders

    def _count(self, program: Program, run: Trajectory) -> None:
        for call in all_calls([run]):
            self[program.spec.modules[call.module].model].spent.add(call.completion)

    def make_learner(
        self, program: Program, config: Tuning, label: str, seed: int, initial: Mapping[str, Path]
    ) -> ClusterLearner:
        """As :func:`mmc.mmgrpo.policy.make_policy`, over the workers."""
        from mmc.cluster.learner import ClusterLearner

        self._learner = ClusterLearner(self.pool, self, program, (config, label, seed, initial, next(self._plans)))
        return self._learner


def shares(examples: Sequence[Example], workers: int) -> list[Sequence[Example]]:
    """``examples`` in runs of neighbours, as even as can be."""
    bounds = [len(examples) * number // workers for number in range(workers + 1)]
    return [examples[start:end] for start, end in pairwise(bounds)]
