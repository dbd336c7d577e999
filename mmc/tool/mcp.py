"""A tool of an MCP server, over standard input and output or over HTTP.

The package mcp is optional (extra ``mcp``), so it is imported when a tool is opened. The connection lives in an event loop of the
tool's own (:mod:`mmc.engine.background`), is made at the first call, and made anew when it was lost.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmc.engine.background import BackgroundLoop
from mmc.errors import ToolError, needing
from mmc.spec.env import expand
from mmc.spec.function import code_folder, require_trust
from mmc.spec.load import LoadedSpec
from mmc.spec.model import McpTool

if TYPE_CHECKING:
    from mcp import Client
    from mcp.types import CallToolResult


class McpCall:
    """Implements :class:`mmc.tool.base.Tool`. Raises EnvironmentProblem when the extra or a variable is missing."""

    def __init__(self, config: McpTool, folder: Path) -> None:
        with needing("mcp", "an mcp tool"):
            import mcp  # noqa: F401
        self._config, self._folder = config, folder
        self._env = {name: expand(value) for name, value in config.env.items()}
        self._headers = {name: expand(value) for name, value in config.headers.items()}
        self._slots = asyncio.Semaphore(config.concurrency)
        self._holder: asyncio.Task[None] | None = None
        self._client: asyncio.Future[Client] | None = None
        self._loop = BackgroundLoop(self._hang_up)

    async def __call__(self, arguments: Mapping[str, Any]) -> Any:
        return await self._loop.run(self._call(arguments))

    def close(self) -> None:
        """Closes the connection; a server that was started here ends."""
        self._loop.close()

    @property
    def _server(self) -> str:
        return self._config.url or " ".join(self._config.command)

    # --- in the tool's own loop ---

    async def _call(self, arguments: Mapping[str, Any]) -> Any:
        from mcp import MCPError

        async with self._slots:
            stage = "connecting to"
            try:
                async with asyncio.timeout(self._config.timeout):
                    client = await self._connected()
                    stage = "waiting for"
                    return _result(await client.call_tool(self._config.tool, dict(arguments)))
            except TimeoutError:
                if stage == "connecting to":
                    await self._hang_up()
                detail = f"no answer within {self._config.timeout:g} s, {stage} the MCP server {self._server}"
                raise ToolError(detail) from None
            except MCPError as error:
                raise ToolError(f"the MCP server {self._server}: {error}") from None

    async def _connected(self) -> Client:
        """The one connection. Raises ToolError when there is none to be had."""
        if self._holder is None or self._holder.done():
            self._client = asyncio.get_running_loop().create_future()
            self._holder = asyncio.create_task(self._hold(self._client))
        assert self._client is not None
        holder, client = self._holder, self._client
        await asyncio.wait({holder, client}, return_when=asyncio.FIRST_COMPLETED)
        if not client.done():
            error = None if holder.cancelled() else holder.exception()
            raise ToolError(f"no connection to the MCP server {self._server}: {_cause(error)}")
        return client.result()

    async def _hold(self, ready: asyncio.Future[Client]) -> None:
        """Keeps the connection open; it has to be closed by the task that opened it."""
        from mcp import Client, StdioServerParameters
        from mcp.client.streamable_http import streamable_http_client

        if self._config.url is None:
            command, *arguments = self._config.command
            server = StdioServerParameters(command=command, args=arguments, env=self._env, cwd=self._folder)
            async with Client(server) as client:
                ready.set_result(client)
                await asyncio.Event().wait()
        else:
            import httpx2

            async with (
                httpx2.AsyncClient(headers=self._headers, timeout=self._config.timeout) as http,
                Client(streamable_http_client(self._config.url, http_client=http)) as client,
            ):
                ready.set_result(client)
                await asyncio.Event().wait()

    async def _hang_up(self) -> None:
        if self._holder is not None:
            self._holder.cancel()
            await asyncio.wait({self._holder})
            self._holder = None


def _cause(error: BaseException | None) -> str:
    """The first thing that went wrong inside groups of errors."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return "it was given up" if error is None else f"{error}" or type(error).__name__


def _result(answer: CallToolResult) -> Any:
    """Structured content where there is some, otherwise the texts. Raises ToolError for an answer that is an error."""
    texts = [text for block in answer.content if (text := getattr(block, "text", None)) is not None]
    if answer.is_error:
        raise ToolError("\n".join(texts) or "the tool failed and said nothing")
    structured = answer.structured_content
    if structured is None:
        return "\n".join(texts)
    plain = json.loads(json.dumps(structured))
    # Servers wrap what is no object under this one name.
    return plain["result"] if isinstance(plain, dict) and plain.keys() == {"result"} else plain


def open_mcp(loaded: LoadedSpec, name: str, config: McpTool, trust: bool) -> McpCall:
    """The tool of a ``type: mcp`` block."""
    if config.command:
        require_trust(loaded, ("tools", name, "command"), f"the program {config.command[0]}", trust)
    return McpCall(config, code_folder(loaded))
