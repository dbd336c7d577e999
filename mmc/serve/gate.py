"""What every request passes: who asks, how much is sent, and whether anybody still waits for the answer."""

from __future__ import annotations

import asyncio
import hmac
import json
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from mmc.serve.measure import Measures
from mmc.serve.options import Options
from mmc.serve.problem import Problem

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]
OPEN = "/health"
"""The one path that needs no token."""
GONE = "499"
"""What is counted as status when the client left before there was one, as nginx does."""


class Gate:
    """An ASGI application around another one."""

    def __init__(self, app: App, options: Options, measures: Measures) -> None:
        self._app, self._options, self._measures = app, options, measures

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status = time.perf_counter(), GONE

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = str(message["status"])
            await send(message)

        try:
            self._authorize(scope)
            body = await self._body(scope, receive)
            if body is not None:
                await _Exchange(self._app, scope, body).go(receive, noted)
        except Problem as problem:
            await _answer(problem, noted)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            self._measures.requests.labels(route, status).inc()
            self._measures.seconds.labels(route).observe(time.perf_counter() - start)

    def _authorize(self, scope: Message) -> None:
        wanted = self._options.token
        if wanted is None or scope["path"] == OPEN:
            return
        given = dict(scope["headers"]).get(b"authorization", b"")
        if not hmac.compare_digest(given, f"Bearer {wanted}".encode()):
            detail = "send the header `Authorization: Bearer ...` with the server's token"
            raise Problem(401, "unauthorized", "No access", detail)

    async def _body(self, scope: Message, receive: Receive) -> bytes | None:
        """The whole body; None when the client left before its end."""
        most = self._options.body_bytes
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        found = bytearray()
        try:
            async with asyncio.timeout(self._options.seconds):
                while int(announced) <= most and len(found) <= most:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    found += message.get("body", b"")
                    if not message.get("more_body", False) and len(found) <= most:
                        return bytes(found)
        except TimeoutError:
            detail = f"the body was not there after {self._options.seconds:g} s"
            raise Problem(408, "slow", "Too slow", detail) from None
        raise Problem(413, "too-large", "Too large", f"a request may have {most} bytes")


class _Exchange:
    """One request whose body is there, and its answer."""

    def __init__(self, app: App, scope: Message, body: bytes) -> None:
        self._app, self._scope, self._body = app, scope, body
        self._gone = asyncio.Event()
        self._given = self._complete = False

    async def go(self, receive: Receive, send: Send) -> None:
        """Answers, or stops working on it when the client leaves."""

        async def noted(message: Message) -> None:
            self._complete = message["type"] == "http.response.body" and not message.get("more_body", False)
            await send(message)

        work = asyncio.ensure_future(self._app(self._scope, self._replay, noted))
        watch = asyncio.create_task(self._watch(receive))
        try:
            await asyncio.wait({work, watch}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done() and not self._complete:
                work.cancel()
            await asyncio.wait({work})
            if not work.cancelled():
                work.result()
        finally:
            watch.cancel()
            work.cancel()

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._gone.set()

    async def _replay(self) -> Message:
        if not self._given:
            self._given = True
            return {"type": "http.request", "body": self._body, "more_body": False}
        await self._gone.wait()
        return {"type": "http.disconnect"}


async def _answer(problem: Problem, send: Send) -> None:
    headers = [(name.lower().encode(), value.encode()) for name, value in problem.headers().items()]
    await send({"type": "http.response.start", "status": problem.status, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps(problem.body()).encode()})
