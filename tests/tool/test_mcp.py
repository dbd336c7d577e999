"""The MCP tool against real MCP servers, started by the test: over standard input and output, and over HTTP."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from mmc.errors import InvalidError, ToolError, UsageError
from mmc.program.graph import Program
from mmc.spec import load
from mmc.spec.tools import McpTool
from mmc.tool.mcp import McpCall

SERVER = """\
import os
import sys
import time

from mcp.server.mcpserver import MCPServer

server = MCPServer("shop")


@server.tool()
def add(a: int, b: int) -> int:
    return a + b


@server.tool()
def rows(word: str) -> list[dict[str, str]]:
    return [{"title": word, "key": os.environ.get("SHOP_KEY", "none")}]


@server.tool()
def fail() -> str:
    raise ValueError("out of stock")


@server.tool()
def hang() -> str:
    time.sleep(30)
    return "late"


@server.tool()
def die() -> str:
    os._exit(1)


if len(sys.argv) > 1:
    server.run("streamable-http", port=int(sys.argv[1]))
else:
    server.run("stdio")
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("mcp")
    (place / "server.py").write_text(SERVER)
    return place


@contextmanager
def opened(folder: Path, **settings: Any) -> Iterator[McpCall]:
    server = {} if "url" in settings or "command" in settings else {"command": [sys.executable, "server.py"]}
    tool = McpCall(McpTool(type="mcp", **{"tool": "add", **server, **settings}), folder)
    try:
        yield tool
    finally:
        tool.close()


def ask(tool: McpCall, **arguments: Any) -> Any:
    return asyncio.run(tool(arguments))


def test_a_server_started_here_answers_and_is_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "k1")
    with opened(folder, tool="rows", env={"SHOP_KEY": "${env:MY_KEY}"}) as tool:
        assert ask(tool, word="tea") == [{"title": "tea", "key": "k1"}]
        first = tool._holder

        async def both() -> list[Any]:
            return list(await asyncio.gather(*(tool({"word": str(i)}) for i in range(4))))

        assert [rows[0]["title"] for rows in asyncio.run(both())] == ["0", "1", "2", "3"]
        assert tool._holder is first


def test_failures_say_what_went_wrong(folder: Path) -> None:
    with opened(folder, tool="fail") as tool, pytest.raises(ToolError, match="Error executing tool fail"):
        ask(tool)
    with opened(folder, tool="nothing") as tool, pytest.raises(ToolError, match="nothing"):
        ask(tool)
    missing = "no connection to the MCP server /no/such/program"
    with opened(folder, command=["/no/such/program"]) as tool, pytest.raises(ToolError, match=missing):
        ask(tool)
    silent = [sys.executable, "-c", "import time; time.sleep(60)"]
    late = r"no answer within 0\.5 s, connecting to the MCP server"
    with opened(folder, command=silent, timeout=0.5) as tool, pytest.raises(ToolError, match=late):
        ask(tool)


def test_a_server_that_dies_is_started_again(folder: Path) -> None:
    with opened(folder, tool="die") as tool:
        for _ in range(2):
            with pytest.raises(ToolError, match="the MCP server"):
                ask(tool)


def test_a_tool_that_hangs_ends_in_a_reason(folder: Path) -> None:
    late = "no answer within 4 s, waiting for the MCP server"
    with opened(folder, tool="hang", timeout=4.0) as tool, pytest.raises(ToolError, match=late):
        ask(tool)


def test_a_server_over_http_answers(folder: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "server.py", str(port)]
    with subprocess.Popen(command, cwd=folder, stderr=subprocess.DEVNULL) as server:
        try:
            for _ in range(600):
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(0.05)
            with opened(folder, url=f"http://127.0.0.1:{port}/mcp") as tool:
                assert ask(tool, a=2, b=3) == 5
        finally:
            server.kill()
    with opened(folder, url=f"http://127.0.0.1:{port}/mcp") as tool, pytest.raises(ToolError, match="MCP server"):
        ask(tool, a=2, b=3)


def test_programs_need_trust_and_blocks_one_server(tmp_path: Path) -> None:
    (tmp_path / "echo.j2").write_text("{{ text }}")
    spec = """\
mmc: 1
name: shop
models: {m: {type: local, source: "path:x"}}
tools: {add: {type: mcp, tool: add, command: [python, server.py]}}
modules: {echo: {model: m, template: echo.j2, inputs: {text: str}, outputs: {said: str}}}
program: {inputs: {text: str}, steps: [{tool: add}, {call: echo}], outputs: {out: "{{ add }}"}}
"""
    (tmp_path / "spec.yaml").write_text(spec)
    with pytest.raises(UsageError, match="this spec runs the program python"):
        Program.build(load(tmp_path / "spec.yaml"))
    (tmp_path / "spec.yaml").write_text(spec.replace("command:", "url: 'http://x/mcp', command:"))
    with pytest.raises(InvalidError, match="either `command` or `url`"):
        load(tmp_path / "spec.yaml")
