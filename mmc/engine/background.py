"""An event loop in a thread of its own.

A local model decodes in the loop that asks it and lets nothing else run there meanwhile. So what waits on the network does
it in another: it would time out without anybody being at fault, and connections outlive the loop of one `run_all`. And
a server puts its programs and engines into one, and answers from its own.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


class BackgroundLoop:
    """Starts at once, ends with :meth:`close` or the process. ``goodbye`` is awaited at its end."""

    def __init__(self, goodbye: Callable[[], Awaitable[None]] | None = None) -> None:
        self._goodbye = goodbye
        self._stop = asyncio.Event()
        started: Future[asyncio.AbstractEventLoop] = Future()
        self._thread = threading.Thread(target=asyncio.run, args=(self._live(started),), daemon=True)
        self._thread.start()
        self._loop = started.result()

    async def _live(self, started: Future[asyncio.AbstractEventLoop]) -> None:
        started.set_result(asyncio.get_running_loop())
        await self._stop.wait()
        if self._goodbye is not None:
            await self._goodbye()

    async def run(self, work: Coroutine[None, None, T]) -> T:
        """Awaits ``work``, done over there; cancelled with its caller."""
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))

    def call(self, work: Callable[[], object]) -> None:
        """Calls ``work`` over there, after everything that was asked for before."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(work)

    def close(self) -> None:
        """Cancels what still runs and waits for the end. A second call does nothing."""
        self.call(self._stop.set)
        self._thread.join()
