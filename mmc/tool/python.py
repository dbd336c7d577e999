"""A Python function as a tool."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from mmc.errors import ToolError
from mmc.spec.function import import_function
from mmc.spec.load import LoadedSpec
from mmc.spec.model import PythonTool


class PythonFunction:
    """Calls a function with the step's arguments by name; a sync one runs in a thread, so a time-out can be kept."""

    def __init__(self, function: Callable[..., Any], timeout: float) -> None:
        self._function, self._timeout = function, timeout

    async def __call__(self, arguments: Mapping[str, Any]) -> Any:
        if inspect.iscoroutinefunction(self._function):
            work = self._function(**arguments)
        else:
            work = _in_thread(self._function, arguments)
        try:
            return await asyncio.wait_for(work, self._timeout)
        except TimeoutError:
            raise ToolError(f"no answer within {self._timeout:g} s") from None


async def _in_thread(function: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
    """What the function gives. Its thread is its own and a daemon's: one that hangs takes no other call's place, and neither
    the end of a batch of runs nor that of the process waits for it.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Any] = loop.create_future()
    context = contextvars.copy_context()

    def settle(result: Any, error: Exception | None) -> None:
        if done.done():
            return
        if error is None:
            done.set_result(result)
        else:
            done.set_exception(error)

    def work() -> None:
        result, error = None, Exception("the function ended its thread")
        try:
            result, error = context.run(function, **arguments), None  # type: ignore[assignment]
        except Exception as problem:  # a tool call: handed to whoever waits for it
            error = problem
        finally:
            with suppress(RuntimeError):  # nobody waits any more, and the loop is closed
                loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=work, daemon=True).start()
    return await done


def open_python(loaded: LoadedSpec, name: str, config: PythonTool, trust: bool) -> PythonFunction:
    """The tool of a ``type: python`` block."""
    return PythonFunction(import_function(loaded, ("tools", name, "function"), config.function, trust), config.timeout)
