"""A tool's answers in a file: taken from there when they are known, added when they are not.

One JSON object a line, so that recordings can be read, compared and kept in git. Several processes may add to one file: each
line is written at once to its end, and what others added is read before a tool is called.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmc.errors import Diagnostic, InvalidError, ToolError
from mmc.spec.load import LoadedSpec
from mmc.spec.tools import Tool as ToolConfig
from mmc.tool.base import Tool

_BESIDE = {"timeout", "retries", "concurrency", "max_bytes"}
"""Settings that decide whether there is an answer, not what it is."""


class Cassette:
    """The answers of one tool with one configuration. Raises InvalidError for a file that holds something else."""

    def __init__(self, path: Path, tool: str, config: str) -> None:
        self.path, self._tool, self._config = path, tool, config
        self._answers: dict[str, Any] = {}
        self._read = 0
        """Bytes of the file that were read: whole lines."""
        self.refresh()

    def key(self, arguments: Mapping[str, Any]) -> str:
        """What an answer is found by. Raises ToolError for arguments that are no JSON."""
        try:
            return json.dumps(arguments, sort_keys=True, ensure_ascii=False)
        except (TypeError, ValueError) as error:
            raise ToolError(f"the arguments cannot be recorded: {error}") from None

    def get(self, key: str) -> tuple[Any] | None:
        """The answer, in a tuple of its own; None when it is not known."""
        return (self._answers[key],) if key in self._answers else None

    def add(self, key: str, result: Any) -> Any:
        """Writes an answer down, and gives it as it will be read."""
        row = {"tool": self._tool, "config": self._config, "arguments": json.loads(key), "result": result}
        try:
            line = json.dumps(row, sort_keys=True, ensure_ascii=False)
        except (TypeError, ValueError) as error:
            raise ToolError(f"the result cannot be recorded: {error}") from None
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab+") as file:
            # A line that a killed process left unfinished is closed off, not continued.
            file.seek(max(0, file.seek(0, os.SEEK_END) - 1))
            torn = file.read(1) not in (b"", b"\n")
            file.write(b"\n" * torn + line.encode() + b"\n")
        return self._answers.setdefault(key, json.loads(line)["result"])

    def refresh(self) -> None:
        """Reads what was added to the file since the last time."""
        if not self.path.is_file():
            return
        with self.path.open("rb") as file:
            file.seek(self._read)
            new = file.read()
        whole = new[: new.rfind(b"\n") + 1]
        self._read += len(whole)
        for line in whole.splitlines():
            self._take(line)

    def _take(self, line: bytes) -> None:
        try:
            row = json.loads(line)
        except ValueError:
            return  # torn by a kill: its answer is asked for once more
        if not isinstance(row, dict) or not {"tool", "config", "arguments", "result"} <= row.keys():
            message = "this line holds no recorded answer of a tool; name another file, or remove it"
            raise InvalidError([Diagnostic(str(self.path), 0, 0, message)])
        if (row["tool"], row["config"]) == (self._tool, self._config):
            self._answers.setdefault(self.key(row["arguments"]), row["result"])


class Recorded:
    """Implements :class:`mmc.tool.base.Tool`: another one and its cassette; without another one what is not known fails."""

    def __init__(self, cassette: Cassette, tool: Tool | None) -> None:
        self._cassette, self._tool = cassette, tool
        self._going: dict[str, asyncio.Task[Any]] = {}

    async def __call__(self, arguments: Mapping[str, Any]) -> Any:
        key = self._cassette.key(arguments)
        known = self._cassette.get(key)
        if known is None:
            self._cassette.refresh()
            known = self._cassette.get(key)
        if known is not None:
            return json.loads(json.dumps(known[0]))  # runs may change what they are given
        if self._tool is None:
            raise ToolError(f"not recorded in {self._cassette.path}, and `record.mode` is replay: {_short(key)}")
        # Equal calls at the same time are one: a run must not see another answer than a replay of it.
        if key not in self._going:
            self._going[key] = asyncio.create_task(self._ask(self._tool, key, arguments))
            self._going[key].add_done_callback(lambda _: self._going.pop(key, None))
        return json.loads(json.dumps(await asyncio.shield(self._going[key])))

    async def _ask(self, tool: Tool, key: str, arguments: Mapping[str, Any]) -> Any:
        return self._cassette.add(key, await tool(arguments))


def _short(text: str) -> str:
    return text if len(text) <= 200 else f"{text[:200]}..."


def open_cassette(loaded: LoadedSpec, name: str, config: ToolConfig) -> Cassette:
    """The cassette that a tool's ``record`` names."""
    assert config.record is not None
    settings = config.model_dump_json(exclude=_BESIDE)
    fingerprint = hashlib.sha256(settings.encode()).hexdigest()[:16]
    return Cassette(loaded.resolve(config.record.file), name, fingerprint)
