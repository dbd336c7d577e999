"""A web service as a tool.

httpx and tenacity are optional (extra ``http``), so they are imported when a tool is opened. Requests run in an event loop of the
tool's own (:mod:`mmc.engine.background`). Secrets are resolved when it is opened and kept out of all messages.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from mmc.engine.background import BackgroundLoop
from mmc.engine.remote import pause_before, seconds_of
from mmc.errors import EnvironmentProblem, InvalidError, ToolError, needing
from mmc.spec.env import REFERENCE, expand
from mmc.spec.load import LoadedSpec
from mmc.spec.tools import PLACE, HttpTool

if TYPE_CHECKING:
    import httpx
    from tenacity import RetryCallState

_PART = re.compile(r"\.?([^.\[\]]+)|\[(\d+)\]")
"""A step of a path into JSON: a name or a number."""
REPEATABLE = frozenset({"GET", "PUT", "DELETE"})
"""Methods that may be sent twice."""
PASSING = frozenset({408, 429, 502, 503, 504})
"""Statuses that may be another one next time."""
REFUSED = frozenset({429, 503})
"""Those among them that say that nothing was done."""
MOST_REDIRECTS = 5
FIRST_PAUSE = 0.5
"""Seconds before the first retry; doubled with each, up to ``LONGEST_PAUSE``; then up to as much again, at random."""
LONGEST_PAUSE = 20.0


class _Again(Exception):
    """An attempt failed, and another one may not."""

    def __init__(self, reason: str, pause: float = 0.0) -> None:
        super().__init__(reason)
        self.pause = pause
        """Seconds that the service asks for."""


class HttpRequest:
    """Implements :class:`mmc.tool.base.Tool`. Raises EnvironmentProblem when an extra or a variable is missing."""

    def __init__(self, config: HttpTool) -> None:
        with needing("http", "an http tool"):
            import httpx
            import tenacity  # noqa: F401
        self._config = config
        self._url = expand(config.url)
        self._headers = {name: expand(value) for name, value in config.headers.items()}
        unfit = [name for name, value in self._headers.items() if not value.isprintable()]
        if unfit:
            raise EnvironmentProblem(
                f"the value of the header {unfit[0]} has a line break or the like; check the variable"
            )
        texts = [config.url, *config.headers.values()]
        self._secrets = [expand(found[0]) for text in texts for found in REFERENCE.finditer(text)]
        self._path = [name or int(number) for name, number in _PART.findall(config.result or "")]
        self._client = httpx.AsyncClient(timeout=config.timeout, follow_redirects=False)
        self._slots = asyncio.Semaphore(config.concurrency)
        self._loop = BackgroundLoop(self._client.aclose)

    async def __call__(self, arguments: Mapping[str, Any]) -> Any:
        try:
            return await self._loop.run(self._answer(arguments))
        except ToolError as error:
            raise ToolError(self._masked(str(error))) from None

    def close(self) -> None:
        """Closes the connections."""
        self._loop.close()

    # --- in the tool's own loop ---

    async def _answer(self, arguments: Mapping[str, Any]) -> Any:
        """The result after as many attempts as it takes and is allowed."""
        from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt

        attempts = AsyncRetrying(
            stop=stop_after_attempt(self._config.retries + 1),
            wait=_pause,
            retry=retry_if_exception_type(_Again),
            reraise=True,
        )
        try:
            async with self._slots:
                return self._read(await attempts(self._attempt, self._request(arguments)))
        except _Again as error:
            tries = f", {self._config.retries + 1} attempts" if self._config.retries else ""
            raise ToolError(f"{error}{tries} ({self._config.method} {self._config.url})") from None

    def _request(self, arguments: Mapping[str, Any]) -> httpx.Request:
        rest = dict(arguments)
        url = PLACE.sub(lambda found: _escaped(found[1], rest), self._url)
        for name in PLACE.findall(self._url):
            rest.pop(name, None)
        in_body = self._config.method in ("POST", "PUT", "PATCH")
        try:
            body = json.dumps(rest).encode() if in_body else None
        except (TypeError, ValueError) as error:
            raise ToolError(f"the arguments are no JSON: {error}") from None
        headers = {**({"Content-Type": "application/json"} if in_body else {}), **self._headers}
        query = None if in_body or not rest else {name: _text(value) for name, value in rest.items()}
        request = self._client.build_request(self._config.method, url, headers=headers, content=body)
        if query:
            request.url = request.url.copy_merge_params(query)
        return request

    async def _attempt(self, request: httpx.Request) -> bytes:
        """The answer's body. Raises _Again for what may mend, ToolError for what does not."""
        import httpx

        repeatable = self._config.method in REPEATABLE
        try:
            async with asyncio.timeout(self._config.timeout):
                return await self._followed(request)
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
            raise _Again(f"no connection: {error or type(error).__name__}") from None
        except (TimeoutError, httpx.TimeoutException):
            reason = f"no answer within {self._config.timeout:g} s"
        except (httpx.LocalProtocolError, httpx.UnsupportedProtocol) as error:
            raise ToolError(f"the request cannot be sent: {error}") from None
        except httpx.TransportError as error:
            reason = f"the connection was lost: {error or type(error).__name__}"
        except httpx.InvalidURL as error:
            raise ToolError(f"not a valid URL: {error}") from None
        raise _Again(reason) if repeatable else ToolError(f"{reason} (POST and PATCH are not repeated)")

    async def _followed(self, request: httpx.Request) -> bytes:
        """The body at the end of all redirects."""
        for _ in range(MOST_REDIRECTS + 1):
            answer = await self._client.send(request, stream=True)
            try:
                if answer.next_request is None:
                    return await self._body(answer)
                request = self._redirected(request, answer.next_request)
            finally:
                await answer.aclose()
        raise ToolError(f"more than {MOST_REDIRECTS} redirects")

    def _redirected(self, request: httpx.Request, target: httpx.Request) -> httpx.Request:
        """Where a redirect leads. Raises ToolError for a host that nobody allowed."""
        if (request.url.host, request.url.port) == (target.url.host, target.url.port) and (
            target.url.scheme == request.url.scheme
        ):
            return target
        place = target.url.netloc.decode()
        if request.url.host == target.url.host and target.url.scheme == "https" and target.url.port is None:
            return target
        if place not in self._config.redirects or (request.url.scheme, target.url.scheme) == ("https", "http"):
            raise ToolError(f"a redirect leads to {target.url.scheme}://{place}, which `redirects` does not allow")
        for name in self._headers:
            target.headers.pop(name, None)
        return target

    async def _body(self, answer: httpx.Response) -> bytes:
        most = self._config.max_bytes
        found = bytearray()
        if answer.status_code >= 400:
            self._refuse(answer)
        async for piece in answer.aiter_bytes():
            found += piece
            if len(found) > most:
                raise ToolError(f"the answer is larger than {most} bytes (max_bytes)")
        return bytes(found)

    def _refuse(self, answer: httpx.Response) -> None:
        status = answer.status_code
        reason = f"status {status} {answer.reason_phrase}".strip()
        if status in (PASSING if self._config.method in REPEATABLE else REFUSED):
            raise _Again(reason, seconds_of(answer.headers.get("retry-after", "")))
        raise ToolError(f"{reason} ({self._config.method} {self._config.url})")

    # --- the result ---

    def _read(self, body: bytes) -> Any:
        if self._config.format == "text":
            return body.decode(errors="replace")
        try:
            value = json.loads(body)
        except ValueError as error:
            raise ToolError(f"the answer is not JSON: {error}") from None
        for part in self._path:
            try:
                value = value[part]
            except (LookupError, TypeError):
                raise ToolError(f"the answer has no {self._config.result} (nothing at {part!r})") from None
        return value

    def _masked(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "***") if secret else text
        return text


def _escaped(name: str, arguments: Mapping[str, Any]) -> str:
    if name not in arguments:
        raise ToolError(f"the URL needs the argument {name!r}; there are: {', '.join(arguments) or 'none'}")
    text = _text(arguments[name])
    if text in ("", ".", ".."):
        raise ToolError(f"the argument {name!r} is {text!r}, which would change the URL's path")
    return quote(text, safe="")


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _pause(state: RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome is not None else None
    return pause_before(state, error.pause if isinstance(error, _Again) else 0.0, FIRST_PAUSE, LONGEST_PAUSE)


def open_http(loaded: LoadedSpec, name: str, config: HttpTool, trust: bool) -> HttpRequest:
    """The tool of a ``type: http`` block. Raises InvalidError when `result` is no path."""
    if config.result is not None and not re.fullmatch(rf"({_PART.pattern})+", config.result):
        message = f"{config.result!r} is no path into JSON; write it as data.items[0].title"
        raise InvalidError([loaded.diagnostic(("tools", name, "result"), message)])
    return HttpRequest(config)
