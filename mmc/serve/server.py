"""Listens, loads, and stops in good order."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from mmc.errors import EnvironmentProblem, needing
from mmc.program.graph import Program
from mmc.serve.options import TOKEN, Options

if TYPE_CHECKING:
    from mmc.serve.worker import Worker


def serve(program: Program, options: Options, say: Callable[[str], None]) -> None:
    """Serves until the process is told to stop. Raises EnvironmentProblem when an extra, the port or a model is missing."""
    with needing("serve", "serving"):
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn  # noqa: F401
    from mmc.serve.worker import Worker

    with _listening(options) as listener:
        worker = Worker(program)
        try:
            asyncio.run(_serve(worker, options, listener, say))
        finally:
            worker.close()


def token_from_environment() -> str | None:
    """The bearer token, where one is set."""
    return os.environ.get(TOKEN) or None


def _listening(options: Options) -> socket.socket:
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    try:
        return socket.create_server((options.host, options.port), family=family, backlog=2048)
    except OSError as error:
        raise EnvironmentProblem(f"cannot listen on {options.host} port {options.port}: {error.strerror}") from error


async def _serve(worker: Worker, options: Options, listener: socket.socket, say: Callable[[str], None]) -> None:
    import uvicorn

    from mmc.serve.app import Service, make_app
    from mmc.serve.desk import Desk
    from mmc.serve.gate import Gate
    from mmc.serve.measure import Measures

    measures = Measures()
    desk = Desk(options, measures)
    app = Gate(make_app(Service(worker.program, options, worker, desk, measures)), options, measures)
    config = uvicorn.Config(
        app,
        log_level="warning",
        lifespan="off",
        timeout_graceful_shutdown=1,
        server_header=False,
    )
    server = uvicorn.Server(config)
    host, port = listener.getsockname()[:2]
    answering = asyncio.create_task(server.serve([listener]))
    while not server.started and not answering.done():
        await asyncio.sleep(0.01)
    stop = _on_signals(desk.abandon)
    say(f"listening on http://{f'[{host}]' if ':' in host else host}:{port}")
    loading = asyncio.create_task(worker.load())
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({loading, stopping, answering}, return_when=asyncio.FIRST_COMPLETED)
        if loading.done():
            loading.result()
            desk.open()
            say("ready")
            await asyncio.wait({stopping, answering}, return_when=asyncio.FIRST_COMPLETED)
        say(f"stopping; running requests have {options.grace:g} s")
        await desk.close()
    finally:
        loading.cancel()
        stopping.cancel()
        server.should_exit = True
        await answering


def _on_signals(hurry: Callable[[], None]) -> asyncio.Event:
    """An event that the first SIGTERM or SIGINT sets; the second one calls ``hurry``."""
    stop = asyncio.Event()

    def told() -> None:
        if stop.is_set():
            hurry()
        stop.set()

    if sys.platform != "win32":
        for name in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(name, told)
    return stop
