"""Runs a page of examples: its files are written, its commands are run, in the order they stand, in an empty folder."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from mmc.cli import execute

EXAMPLES = Path(__file__).parents[2] / "examples"
FILE = re.compile(r"^(?:# |// |\{# )([\w./-]+\.\w+)(?: #\})?\n")
"""The first line of a block that is a file names it; in JSON Lines, which have no comments, it is not part of the file."""

More = Callable[[str], Sequence[str]]
"""mmc's command -> options that make it small, or lead it to a model of the tests."""


class Page:
    """One page; ``said`` has what each command printed, stdout before stderr, by the command as it stands on the page."""

    def __init__(self, name: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
        self.text = (EXAMPLES / name / "README.md").read_text()
        self.said: dict[str, str] = {}
        self._monkeypatch, self._capfd = monkeypatch, capfd

    def run(self, folder: Path, more: More) -> None:
        self._monkeypatch.chdir(folder)
        for kind, block in re.findall(r"```(\w+)\n(.*?)```", self.text, re.DOTALL):
            if kind == "sh":
                for line in block.splitlines():
                    self._line(line, more)
            elif named := FILE.match(block):
                file = folder / named[1]
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(block[named.end() :] if kind == "jsonl" else block)

    def _line(self, line: str, more: More) -> None:
        command, _, note = line.partition("   # ")
        expected = int(found[1]) if (found := re.match(r"exits with (\d+)", note)) else 0
        words = shlex.split(command)
        if words[0] == "export":
            name, _, value = words[1].partition("=")
            self._monkeypatch.setenv(name, value)
            return
        self._capfd.readouterr()
        code = execute([*words[1:], *more(words[1])]) if words[0] == "mmc" else subprocess.call(command, shell=True)
        printed = self._capfd.readouterr()
        self.said[command] = printed.out + printed.err
        assert code == expected, (line, code, self.said[command])
        if expected:
            assert note.split(": ", 1)[1] in self.said[command], (line, self.said[command])

    def of(self, beginning: str) -> str:
        """What the only command with this beginning printed."""
        (found,) = [said for command, said in self.said.items() if command.startswith(beginning)]
        return found
