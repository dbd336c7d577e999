"""Serves the viewer on 127.0.0.1 until it is interrupted."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

from mmc.errors import EnvironmentProblem, UsageError, needing

ADDRESS = "127.0.0.1"


def serve(root: Path, port: int, on_ready: Callable[[str], None]) -> None:
    """Serves the run or the runs in ``root``; port 0 is a free one. ``on_ready`` gets the address.

    Raises UsageError when there is no such folder, EnvironmentProblem when the port is taken or the extra is missing.
    """
    if not root.is_dir():
        raise UsageError(f"{root}: there is no such folder; it is where a compile keeps its runs (--runs)")
    with needing("serve", "viewing"):
        import uvicorn

        from mmc.view.app import make_app
    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((ADDRESS, port))
        except OSError as error:
            raise EnvironmentProblem(
                f"port {port} of {ADDRESS}: {error.strerror}; leave --port out for a free one"
            ) from None
        listening.listen()  # who follows the address at once waits for an answer
        server = uvicorn.Server(uvicorn.Config(make_app(root), log_level="warning", access_log=False))
        on_ready(f"http://{ADDRESS}:{listening.getsockname()[1]}/")
        server.run(sockets=[listening])
