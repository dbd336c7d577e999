"""An OpenAI-like API on loopback that answers as a test says."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from mmc.engine.base import Completion, Message, Request, Sampling

KEY = "sk-very-secret"
GOOD = {
    "id": "1",
    "object": "chat.completion",
    "created": 1,
    "model": "tiny",
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "blue"}}],
    "usage": {"prompt_tokens": 11, "completion_tokens": 3, "total_tokens": 14},
}


class Api(ThreadingHTTPServer):
    """Answers each request by ``answer(handler, body, number)``; keeps what came."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answer: Callable[[Handler, dict[str, Any], int], None] = lambda h, body, n: h.reply(GOOD)
        self.bodies: list[dict[str, Any]] = []
        self.keys: set[str] = set()
        self.lock = threading.Lock()
        self.over = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that hang up are part of the tests."""


class Handler(BaseHTTPRequestHandler):
    server: Api

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        api = self.server
        with api.lock:
            api.bodies.append(body)
            api.keys.add(self.headers["authorization"])
            number = len(api.bodies)
        api.answer(self, body, number)

    def reply(self, content: object, status: int = 200, **headers: str) -> None:
        sent = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"content-type": "application/json", "content-length": str(len(sent)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(sent)

    def fail(self, status: int, message: str = "no", **headers: str) -> None:
        self.reply({"error": {"message": message, "type": "error"}}, status, **headers)

    def log_message(self, format: str, *args: Any) -> None:
        pass


def ask(*place: int, **more: Any) -> Request:
    return Request(("s", 0, *place), (Message("user", "what colour?"),), Sampling(0.7, 5), **more)


def answers(engine: Any, *requests: Request) -> list[Completion | BaseException]:
    async def all_() -> list[Completion | BaseException]:
        return await asyncio.gather(*map(engine.complete, requests), return_exceptions=True)

    with engine.client():
        return asyncio.run(all_())
