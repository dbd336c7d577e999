"""The program and its engines, in an event loop and a thread of their own."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

from mmc.data import Example
from mmc.engine import open_engines
from mmc.engine.background import BackgroundLoop
from mmc.engine.base import Completion, Engine, Request, Watch, distinct
from mmc.program.graph import Program
from mmc.program.run import RunSettings, run
from mmc.program.trajectory import Trajectory
from mmc.serve.metered import Meter, metered


@dataclass(frozen=True)
class Drawing:
    """How tokens are drawn; greedy unless said otherwise."""

    temperature: float = 0.0
    seed: int = 0


class Worker:
    """Runs the program and single modules. Everything but :meth:`close` may be awaited many times at once."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self._engines: dict[str, Engine] = {}
        self._open = ExitStack()
        self._loop = BackgroundLoop(self._goodbye)

    async def load(self) -> None:
        """Loads models and adapters. Raises EnvironmentProblem when one is missing."""
        await self._loop.run(self._load())

    async def _load(self) -> None:
        self._engines = open_engines(self.program.loaded)
        for engine in distinct(self._engines):
            self._open.enter_context(engine.serving())

    async def _goodbye(self) -> None:
        self._open.close()

    async def run(self, inputs: Mapping[str, Any], drawing: Drawing, meter: Meter) -> Trajectory:
        """One run of the program: the very one `mmc run` makes of these inputs."""
        settings = RunSettings("run", 0, drawing.seed, drawing.temperature, score=False)
        engines = metered(self._engines, meter)
        return await self._loop.run(run(self.program, engines, Example("run", inputs), settings))

    async def chat(self, module: str, request: Request, meter: Meter, watch: Watch | None = None) -> Completion:
        """One completion of ``module``'s model with its adapter. ``watch`` is called in the caller's loop.

        Raises ProgramLimit when it would take too many tokens, RunFailure when there is none.
        """
        request = replace(request, adapter=self.program.adapters[module])
        if watch is None:
            return await self._loop.run(self._chat(module, request, meter, None))
        here, told = asyncio.get_running_loop(), watch
        return await self._loop.run(
            self._chat(module, request, meter, lambda piece: here.call_soon_threadsafe(told, piece))
        )

    async def _chat(self, module: str, request: Request, meter: Meter, watch: Watch | None) -> Completion:
        model = self.program.spec.modules[module].model
        engine = metered({model: self._engines[model]}, meter)[model]
        with engine.client():
            return await engine.complete(request, watch)

    def close(self) -> None:
        """Ends the thread, and with it whatever still runs there."""
        self._loop.close()
        for engine in distinct(self._engines):
            engine.close()
