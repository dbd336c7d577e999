"""A Python function as a tool."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Mapping
from typing import Any
from weakref import WeakKeyDictionary

from mmc.engine.background import BackgroundLoop
from mmc.errors import ToolError
from mmc.spec.function import import_function, started
from mmc.spec.load import LoadedSpec
from mmc.spec.model import PythonTool


class PythonFunction:
    """Calls a function with the step's arguments by name. It never runs in the loop of the runs, which it could block: a sync
    one has a thread, async ones have a loop, so the time-out is kept whatever it does.
    """

    def __init__(self, function: Callable[..., Any], timeout: float, concurrency: int) -> None:
        self._function, self._timeout, self._concurrency = function, timeout, concurrency
        self._slots: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore] = WeakKeyDictionary()
        """By the loop of a batch of runs: a semaphore belongs to one."""
        self._loop = BackgroundLoop() if inspect.iscoroutinefunction(function) else None

    async def __call__(self, arguments: Mapping[str, Any]) -> Any:
        async with self._slots.setdefault(asyncio.get_running_loop(), asyncio.Semaphore(self._concurrency)):
            try:
                return await asyncio.wait_for(self._answer(arguments), self._timeout)
            except TimeoutError:
                raise ToolError(f"no answer within {self._timeout:g} s") from None

    async def _answer(self, arguments: Mapping[str, Any]) -> Any:
        if self._loop is not None:
            return await self._loop.run(self._function(**arguments))
        return await asyncio.wrap_future(started(self._function, **arguments))


def open_python(loaded: LoadedSpec, name: str, config: PythonTool, trust: bool) -> PythonFunction:
    """The tool of a ``type: python`` block."""
    function = import_function(loaded, ("tools", name, "function"), config.function, trust)
    return PythonFunction(function, config.timeout, config.concurrency)
