"""Whose turn it is: how many requests are worked on at a time, for how long, and until when."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Literal, TypeVar

from mmc.serve.measure import Measures
from mmc.serve.options import Options
from mmc.serve.problem import Problem

T = TypeVar("T")
LOADING_S = 5.0
"""When to ask again while the model is being loaded."""


class Desk:
    """Takes requests while it is open, and no more than it was told to."""

    def __init__(self, options: Options, measures: Measures) -> None:
        self._options, self._measures = options, measures
        self._slots = asyncio.Semaphore(options.running)
        self._work: set[asyncio.Task[Any]] = set()
        self.state: Literal["loading", "ready", "stopping"] = "loading"

    def open(self) -> None:
        """From now on requests are taken."""
        self.state = "ready"
        self._measures.ready.set(1)

    async def close(self) -> None:
        """Takes no more requests, gives those it has their grace, and ends what is left then."""
        self.state = "stopping"
        self._measures.ready.set(0)
        if self._work:
            await asyncio.wait(self._work, timeout=self._options.grace)
        self.abandon()

    def abandon(self) -> None:
        """Ends everything that is still worked on; who waits for it is told so."""
        self.state = "stopping"
        for task in self._work:
            task.cancel()

    def check(self) -> None:
        """Raises the Problem of a server that takes no requests now."""
        if self.state == "loading":
            raise Problem(503, "loading", "Not ready yet", "the model is being loaded", retry_after=LOADING_S)
        if self.state == "stopping":
            raise self._stopping()
        if len(self._work) >= self._options.running + self._options.waiting:
            detail = (
                f"{self._options.running} requests are running and {self._options.waiting} waiting; more are not taken"
            )
            raise Problem(503, "overloaded", "Too much to do", detail, retry_after=1.0)

    def _stopping(self) -> Problem:
        return Problem(503, "stopping", "The server is stopping", "ask another one", retry_after=self._options.grace)

    def begin(self, work: Callable[[], Awaitable[T]]) -> asyncio.Task[T]:
        """Starts ``work`` when it is its turn. Raises Problem when it is not taken; so does the task, when time is up."""
        self.check()
        task = asyncio.create_task(self._timed(work))
        self._work.add(task)
        task.add_done_callback(self._work.discard)
        return task

    async def do(self, work: Callable[[], Awaitable[T]]) -> T:
        """What ``work`` gives. Raises Problem as :meth:`begin`."""
        return await self.outcome(self.begin(work))

    async def outcome(self, task: asyncio.Task[T]) -> T:
        """What a task of :meth:`begin` gives. Raises Problem when the server stopped before its end."""
        try:
            return await task
        except asyncio.CancelledError:
            current = asyncio.current_task()
            if self.state == "stopping" and current is not None and not current.cancelling():
                raise self._stopping() from None
            raise

    async def _timed(self, work: Callable[[], Awaitable[T]]) -> T:
        try:
            async with asyncio.timeout(self._options.seconds):
                async with self._turn():
                    return await work()
        except TimeoutError:
            detail = f"not done after {self._options.seconds:g} s, waiting for its turn included"
            raise Problem(504, "timeout", "It took too long", detail) from None

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        self._measures.waiting.inc()
        try:
            await self._slots.acquire()
        finally:
            self._measures.waiting.dec()
        self._measures.running.inc()
        try:
            yield
        finally:
            self._measures.running.dec()
            self._slots.release()
