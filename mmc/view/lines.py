"""JSON lines of a file that grows, is cut back by a resume, and may end in half a line."""

from __future__ import annotations

import json
import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Generic, TypeVar

T = TypeVar("T")
Row = dict[str, Any]
KEPT = 64
"""Files whose lines are remembered."""


@dataclass(frozen=True)
class Line(Generic[T]):
    """Where a whole line lies, and what is remembered of it."""

    number: int
    offset: int
    length: int
    summary: T


class Lines(Generic[T]):
    """The lines of one file: each is read once, summarized and found again by its offset."""

    def __init__(self, path: Path, summarize: Callable[[Row], T]) -> None:
        self.path, self._summarize = path, summarize
        self._lock = threading.Lock()
        self._reset(0)

    def _reset(self, inode: int) -> None:
        self._inode, self._end = inode, 0
        self._lines: list[Line[T]] = []

    def all(self) -> list[Line[T]]:
        """All whole lines there are now; none when there is no file."""
        with self._lock:
            try:
                with self.path.open("rb") as file:
                    self._catch_up(file)
            except FileNotFoundError:
                self._reset(0)
            return list(self._lines)

    def _catch_up(self, file: BinaryIO) -> None:
        """Reads what is new. A resume writes the file anew, so another inode, or a smaller size, means to start over."""
        state = os.fstat(file.fileno())
        if state.st_ino != self._inode or state.st_size < self._end:
            self._reset(state.st_ino)
        file.seek(self._end)
        for raw in file:
            if not raw.endswith(b"\n"):
                return
            row = _parsed(raw)
            if row is not None:
                self._lines.append(Line(len(self._lines), self._end, len(raw), self._summarize(row)))
            self._end += len(raw)

    def row(self, number: int) -> Row | None:
        """The whole of one line; None when there is none of that number."""
        lines = self.all()
        if not 0 <= number < len(lines):
            return None
        with self.path.open("rb") as file:
            file.seek(lines[number].offset)
            return _parsed(file.read(lines[number].length))


def _parsed(raw: bytes) -> Row | None:
    try:
        row = json.loads(raw)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


class Files(Generic[T]):
    """The :class:`Lines` of the files looked at last."""

    def __init__(self, summarize: Callable[[Row], T]) -> None:
        self._summarize, self._lock = summarize, threading.Lock()
        self._files: OrderedDict[Path, Lines[T]] = OrderedDict()

    def __getitem__(self, path: Path) -> Lines[T]:
        with self._lock:
            if path not in self._files:
                self._files[path] = Lines(path, self._summarize)
            self._files.move_to_end(path)
            while len(self._files) > KEPT:
                self._files.popitem(last=False)
            return self._files[path]


def read_json(path: Path) -> Any:
    """The value in a file; None when there is none, or it is being written."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
