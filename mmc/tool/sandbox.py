"""Python that a module wrote, run where it can do no harm: by Monty, a sandbox that interprets the language itself.

Each program has a process of its own, which holds nothing of this one and is given up when it crashes; no file, no network and
no variable of the environment is to be seen from it. The package is optional (extra ``sandbox``), so it is imported when a tool
is opened. The pool of processes lives in an event loop of the tool's own (:mod:`mmc.engine.background`).
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mmc.engine.background import BackgroundLoop
from mmc.errors import ToolError, needing
from mmc.spec.load import LoadedSpec
from mmc.spec.tools import CODE, SandboxTool

if TYPE_CHECKING:
    from pydantic_monty import AsyncMonty, OSPolicy

_FENCED = re.compile(r"\A\s*```[\w+-]*[^\S\n]*\n(.*?)\n?[^\S\n]*```\s*\Z", re.DOTALL)
"""A program as LMs like to give it: in a block of Markdown."""
POLICY: OSPolicy = {"sleep": "zero", "random_start": {"seed": 0}}
"""The same program does the same again, and nobody waits for one that sleeps."""
GRACE_S = 5.0
"""Seconds after its time-out until a process that does not stop by itself is killed."""


class Sandbox:
    """Implements :class:`mmc.tool.base.Tool`. Raises EnvironmentProblem when the extra is missing."""

    def __init__(self, config: SandboxTool) -> None:
        with needing("sandbox", "a sandbox tool"):
            import pydantic_monty  # noqa: F401
        self._config = config
        self._opened: asyncio.Task[AsyncMonty] | None = None
        self._slots = asyncio.Semaphore(config.concurrency)
        self._loop = BackgroundLoop(self._goodbye)

    async def __call__(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        variables = dict(arguments)
        code = variables.pop(CODE, None)
        if not isinstance(code, str):
            raise ToolError(f"`code` is a text, not {type(code).__name__}")
        return await self._loop.run(self._run(plain_code(code), variables))

    def close(self) -> None:
        """Ends the processes."""
        self._loop.close()

    # --- in the tool's own loop ---

    async def _run(self, code: str, variables: dict[str, Any]) -> dict[str, Any]:
        from pydantic_monty import MontyError, MontyRuntimeError, MontySyntaxError

        printed = _Printed(self._config.max_output)
        limits = {"max_feed_duration_secs": self._config.timeout, "max_memory": self._config.memory * 2**20}
        async with self._slots:
            pool = await self._pool()
            try:
                async with pool.checkout(script_name="code.py", limits=limits, os_policy=POLICY) as session:
                    value = await session.feed_run(code, inputs=variables, print_callback=printed.take)
                return _answer(json.loads(json.dumps(value, default=str)), printed)
            except (MontyRuntimeError, MontySyntaxError) as error:
                return _answer(None, printed, error.display("traceback").strip())
            except MontyError as error:  # its process is gone
                return _answer(None, printed, str(error))
            except (TypeError, ValueError) as error:
                return _answer(None, printed, f"its value is no JSON: {error}")

    async def _pool(self) -> AsyncMonty:
        """The processes, started at the first call. Raises ToolError when they cannot be."""
        from pydantic_monty import AsyncMonty, MontyError

        if self._opened is None:
            most = self._config.concurrency
            pool = AsyncMonty(max_processes=most, request_timeout=self._config.timeout + GRACE_S)
            self._opened = asyncio.ensure_future(pool.__aenter__())
        try:
            return await asyncio.shield(self._opened)
        except (MontyError, OSError) as error:
            self._opened = None
            raise ToolError(f"the sandbox cannot be started: {error}") from None

    async def _goodbye(self) -> None:
        if self._opened is not None and self._opened.done() and self._opened.exception() is None:
            await self._opened.result().__aexit__(None, None, None)


class _Printed:
    """What a program prints, as far as it is kept."""

    def __init__(self, most: int) -> None:
        self._most = most
        self.text = ""

    def take(self, stream: str, text: str) -> None:
        self.text += text[: self._most - len(self.text)]


def _answer(value: Any, printed: _Printed, error: str | None = None) -> dict[str, Any]:
    return {"value": value, "printed": printed.text, "error": error}


def plain_code(text: str) -> str:
    """The program in ``text``, without a block of Markdown around it."""
    found = _FENCED.match(text)
    return found[1] if found else text


def open_sandbox(loaded: LoadedSpec, name: str, config: SandboxTool, trust: bool) -> Sandbox:
    """The tool of a ``type: sandbox`` block. What it runs needs no trust."""
    return Sandbox(config)
