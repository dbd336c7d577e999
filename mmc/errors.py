"""Every error mmc raises on purpose, and the exit code each one ends a command with.

    MmcError                      1   anything below, when nothing more precise fits
    ├── UsageError                2   the command line asks for something that makes no sense
    ├── InvalidError              3   spec, template, data or build is invalid; carries diagnostics
    ├── EnvironmentProblem        4   a missing extra, key, model or file of this machine
    ├── LimitReached              5   a budget stopped the work; it can be resumed
    └── RunFailure                -   one run of a program failed; becomes the trajectory's ending
        ├── ParseError                a completion could not be read as the module's outputs
        ├── ToolError                 a tool raised, timed out or returned nonsense
        └── ProgramLimit              the program ran into a limit of its own (calls, loops)

Everything else that escapes is a bug: the command line writes a crash log and exits with 1.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True, order=True)
class Diagnostic:
    """One problem found in a file a user wrote: where it is, what it is and what to do.

    ``line`` and ``column`` count from 1; 0 means unknown. ``source`` is the text of that line.
    """

    file: str
    line: int
    column: int
    message: str
    hint: str = ""
    severity: Literal["error", "warning"] = "error"
    source: str = ""
    cause: Literal["file", "environment"] = "file"
    """Whether what is wrong is in the file, or something that this machine lacks."""

    def render(self) -> str:
        """``file:line:col: error: message``, then the line and a caret, then the hint."""
        where = shown(self.file)
        if self.line:
            where += f":{self.line}:{self.column}" if self.column else f":{self.line}"
        lines = [f"{where}: {self.severity}: {self.message}"]
        if self.source.strip():
            lines.append(f"    {self.source.rstrip()}")
            if self.column:
                lines.append("    " + " " * (self.column - 1) + "^")
        if self.hint:
            lines.append(f"    {self.hint}")
        return "\n".join(lines)

    def github(self) -> str:
        """As a command of GitHub's workflows, which marks the line in a pull request."""

        def escaped(text: str, more: str = "") -> str:
            for character in "%\r\n" + more:
                text = text.replace(character, f"%{ord(character):02X}")
            return text

        place = [f"file={escaped(self.file, ':,')}"]
        place += [f"line={self.line}"] if self.line else []
        place += [f"col={self.column}"] if self.column else []
        text = f"{self.message} {self.hint}".strip()
        return f"::{self.severity} {','.join(place)}::{escaped(text)}"


def shown(file: str) -> str:
    """A file's path as short as it can be said: from the working folder on, where it lies below that."""
    below = os.path.relpath(file) if Path(file).is_absolute() else file
    return file if below.startswith("..") else below


class MmcError(Exception):
    """Base of every error mmc raises on purpose."""

    exit_code = 1


class UsageError(MmcError, ValueError):
    """The command line or a library call asks for something that makes no sense."""

    exit_code = 2


class InvalidError(MmcError, ValueError):
    """Something the user wrote is invalid. All problems are reported at once."""

    exit_code = 3

    def __init__(self, diagnostics: Sequence[Diagnostic] | str) -> None:
        if isinstance(diagnostics, str):
            diagnostics = [Diagnostic(file="", line=0, column=0, message=diagnostics)]
        self.diagnostics = tuple(diagnostics)
        super().__init__("\n".join(d.render() if d.file else d.message for d in self.diagnostics))


class EnvironmentProblem(MmcError, RuntimeError):
    """The machine lacks something: an extra, a key, a model, a file."""

    exit_code = 4


class LimitReached(MmcError):
    """A budget stopped the work before it was done; the same command resumes it."""

    exit_code = 5


class RunFailure(MmcError):
    """One run of a program failed. Never ends a compile: it becomes the trajectory's ending."""


@dataclass
class ParseError(RunFailure):
    """A completion could not be read as the module's outputs.

    ``partial`` holds the fields that could be read, so that partial credit can be given.
    """

    message: str
    partial: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.message


class ToolError(RunFailure):
    """A tool raised, timed out or returned something the program cannot use."""


class ProgramLimit(RunFailure):
    """The program ran into a limit of its own: too many calls or loop turns."""


@contextmanager
def needing(extra: str, what: str) -> Iterator[None]:
    """Around the imports of packages that ``what`` needs and the ``extra`` brings.

    Raises EnvironmentProblem that says how to install what is missing, or why what is there cannot be imported.
    """
    try:
        yield
    except ImportError as error:
        package = (error.name or "").partition(".")[0] or "a package"
        if package == "mmc":
            raise  # a bug of ours, which no installation mends
        if isinstance(error, ModuleNotFoundError):
            raise EnvironmentProblem(f"{what} needs {package}: pip install 'mmc[{extra}]'") from error
        raise EnvironmentProblem(f"{what} needs {package}, which is installed but fails to import: {error}") from error
