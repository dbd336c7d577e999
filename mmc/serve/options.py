"""What a server is told at its start."""

from __future__ import annotations

from dataclasses import dataclass, field

TOKEN = "MMC_SERVE_TOKEN"
"""The environment variable that holds the bearer token."""


@dataclass(frozen=True)
class Options:
    """Where a server listens and what it takes. Times are in seconds."""

    host: str = "127.0.0.1"
    port: int = 8000
    running: int = 32
    """Most requests worked on at a time."""
    waiting: int = 128
    """Most requests that wait for one of those to end; more are turned away."""
    seconds: float = 120.0
    """Longest time for one request, its waiting included."""
    tokens: int = 32768
    """Most tokens of one request, read and written, over all its LM calls."""
    body_bytes: int = 1 << 20
    """Largest body of a request."""
    grace: float = 30.0
    """How long running requests may go on when the server is told to stop."""
    token: str | None = field(default=None, repr=False)
    """What clients have to show as bearer token; None: nothing."""
