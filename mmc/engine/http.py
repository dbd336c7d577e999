"""JSON over HTTP to one API, with connections that stay open: aiohttp, opened in the loop that uses it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from mmc.engine.remote import Unusable, one_line, seconds_of
from mmc.errors import needing

if TYPE_CHECKING:
    from aiohttp import ClientSession


IDLE_S = 3.0
"""Seconds after which an idle connection is not used again."""


class ApiError(Exception):
    """The API refused (its HTTP ``status``), or was not reached (status 0). ``pause``: seconds it asks to wait."""

    def __init__(self, said: str, status: int = 0, pause: float = 0.0) -> None:
        super().__init__(said)
        self.status, self.pause = status, pause


class Http:
    """Posts to addresses below ``base``. Raises EnvironmentProblem when the extra is missing."""

    def __init__(self, base: str, key: str | None, timeout: float) -> None:
        with needing("remote", "a remote model"):
            import aiohttp
            import tenacity  # noqa: F401
        self._aiohttp, self._base, self._key, self._timeout = aiohttp, base.rstrip("/"), key, timeout
        self._session: ClientSession | None = None

    async def post(self, path: str, body: Any, read: bool = True) -> Any:
        """The JSON that is answered; None without ``read``, for answers that are no JSON.

        Raises ApiError, TimeoutError, and Unusable for what is no JSON.
        """
        return await self._ask("POST", path, body, read)

    async def get(self, path: str) -> Any:
        """The JSON that is answered. Raises as :meth:`post` does."""
        return await self._ask("GET", path, None, True)

    async def _ask(self, method: str, path: str, body: Any, read: bool) -> Any:
        try:
            async with self._opened().request(method, f"{self._base}{path}", json=body) as response:
                text = await response.text(errors="replace")
                if response.status >= 400:
                    pause = seconds_of(response.headers.get("retry-after", ""))
                    raise ApiError(f"{response.status} {self._said(text)}", response.status, pause)
        except self._aiohttp.ClientError as error:
            raise ApiError(self._said(f"{type(error).__name__}: {error}")) from error
        if not read:
            return None
        try:
            return json.loads(text)
        except ValueError as error:
            raise Unusable("the answer is no JSON") from error

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    def _opened(self) -> ClientSession:
        if self._session is None:
            headers = {} if self._key is None else {"Authorization": f"Bearer {self._key}"}
            self._session = self._aiohttp.ClientSession(
                headers=headers,
                # How many at a time is the engine's to say. Servers drop idle connections, uvicorn after 5 seconds.
                connector=self._aiohttp.TCPConnector(limit=0, keepalive_timeout=IDLE_S),
                timeout=self._aiohttp.ClientTimeout(total=self._timeout),
            )
        return self._session

    def _said(self, text: str) -> str:
        return one_line(text, self._key)
