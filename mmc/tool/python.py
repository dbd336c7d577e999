"""A Python function as a tool."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Mapping
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
            work = asyncio.to_thread(self._function, **arguments)
        try:
            return await asyncio.wait_for(work, self._timeout)
        except TimeoutError:
            raise ToolError(f"no answer within {self._timeout:g} s") from None


def open_python(loaded: LoadedSpec, name: str, config: PythonTool, trust: bool) -> PythonFunction:
    """The tool of a ``type: python`` block."""
    return PythonFunction(import_function(loaded, ("tools", name, "function"), config.function, trust), config.timeout)
