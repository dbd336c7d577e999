"""The blocks of tools: what a program can call besides an LM."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from mmc.spec.keys import Keys

PLACE = re.compile(r"(?<!\$)\{([A-Za-z_]\w*)\}")
"""An argument's place in the URL of an HTTP tool."""
CODE = "code"
"""The argument of a sandbox that holds the program."""


class Record(Keys):
    """Answers of a tool, kept in a file, so that search and training can be repeated without it."""

    file: str
    """JSONL, one answer a line, by the tool's name, its settings and its arguments. Failures are not kept."""
    mode: Literal["auto", "replay", "off"] = "auto"
    """auto: what is known comes from the file, the rest from the tool, and is added; replay: what is not known fails, and the
    tool is never opened; off: as if there was no file. `--set tools.NAME.record.mode=replay` says it for one command."""


class _Recorded(Keys):
    """What every tool has."""

    # Where answers are kept changes none of them, so it is no part of what a run depends on.
    record: Record | None = Field(None, exclude=True)
    """Keep this tool's answers in a file, or take them from it. A Python function's code is not compared: after changing
    it, remove the file."""


class Bm25Tool(_Recorded):
    """Full-text search over a JSONL corpus. Argument: `query`. Result: a list of rows, best first, each with `score`."""

    type: Literal["bm25"]
    corpus: str
    """JSONL file, one document a line."""
    k: int = Field(5, gt=0)
    """How many documents a search returns."""
    fields: list[str] = ["title", "text"]
    """Columns of the corpus that are searched, joined with a bar."""


class PythonTool(_Recorded):
    """A Python function, sync or async, called with the step's arguments by name. Needs --trust."""

    type: Literal["python"]
    function: str = Field(pattern=r"^[\w.]+:[\w.]+$")
    """`package.module:function`; modules beside the spec are found too."""
    timeout: float = Field(60.0, gt=0)
    """Seconds after which a call counts as failed."""
    # How many run at a time changes no answer, so no result of a compile depends on it.
    concurrency: int = Field(8, gt=0, exclude=True)
    """Most calls at a time."""


class HttpTool(_Recorded):
    """A request to a web service. Arguments that the URL does not name become its query, or the JSON body of POST, PUT and
    PATCH. Result: the answer's JSON, or a part of it.
    """

    type: Literal["http"]
    url: str = Field(pattern=r"^https?://[^\s/{}]+(/|$)")
    """Address; `{name}` in the path or query is the argument of that name, escaped. May contain `${env:NAME}` after the host."""
    method: Literal["GET", "POST", "PUT", "PATCH", "DELETE"] = "GET"
    """How the address is asked."""
    headers: dict[str, str] = {}
    """Headers of the request; secrets as `${env:NAME}`, which is read when the tool is opened and written nowhere."""
    format: Literal["json", "text"] = "json"
    """How the answer is read."""
    result: str | None = None
    """Where in the answer's JSON the result stands, such as `data.items[0].title`; all of it when left out."""
    timeout: float = Field(30.0, gt=0)
    """Seconds for one attempt, the answer's body included."""
    max_bytes: int = Field(1 << 20, gt=0)
    """Largest body of an answer; a larger one counts as failed."""
    retries: int = Field(2, ge=0)
    """How often an attempt is repeated after a time-out, a lost connection, or a status of 408, 429, 502, 503 or 504. A POST or
    PATCH, which may have been done already, only when it was never taken: no connection, 429 or 503."""
    redirects: list[str] = []
    """Other hosts, with port where it is not the usual one, that a redirect may lead to; they get no headers of this spec."""
    concurrency: int = Field(8, gt=0)
    """Most requests at a time."""


class McpTool(_Recorded):
    """A tool of an MCP server, either a program that is started here (`command`; needs --trust) or a server elsewhere (`url`).
    Result: its structured content, or else its text.
    """

    type: Literal["mcp"]
    tool: str
    """Name of the tool on the server."""
    command: list[str] = []
    """The program and its arguments; it runs in the spec's folder and is spoken to over standard input and output."""
    env: dict[str, str] = {}
    """More environment for the program; secrets as `${env:NAME}`. Of this process's environment it gets PATH, HOME and their
    like alone."""
    url: str | None = Field(None, pattern=r"^https?://\S+$")
    """Address of a server that speaks streamable HTTP."""
    headers: dict[str, str] = {}
    """Headers for that server; secrets as `${env:NAME}`."""
    timeout: float = Field(60.0, gt=0)
    """Seconds for one call, starting the server included."""
    concurrency: int = Field(8, gt=0)
    """Most calls at a time."""

    @model_validator(mode="after")
    def _one_server(self) -> Self:
        if bool(self.command) == (self.url is not None):
            raise ValueError("an MCP tool needs either `command` or `url`")
        if (self.env and not self.command) or (self.headers and self.url is None):
            raise ValueError("`env` goes with `command`, `headers` with `url`")
        return self


class SandboxTool(_Recorded):
    """Runs Python that a module wrote, apart from this machine: without files, network, environment or packages. Arguments:
    `code`, and variables that it finds by their names. Result: `value`, that of its last expression; `printed`; and `error`,
    what ended it, or null. Code that fails is an answer, not a failing tool.
    """

    type: Literal["sandbox"]
    timeout: float = Field(5.0, gt=0)
    """Seconds that the code may compute."""
    memory: int = Field(64, gt=0)
    """Megabytes that it may hold."""
    max_output: int = Field(10_000, gt=0)
    """Characters of what it prints that are kept; the rest is dropped."""
    # How many run at a time changes no answer, so no result of a compile depends on it.
    concurrency: int = Field(4, gt=0, exclude=True)
    """Most programs at a time, each in a process of its own."""


Tool = Annotated[Bm25Tool | PythonTool | HttpTool | McpTool | SandboxTool, Field(discriminator="type")]
