"""What a compile tells while it goes on."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Shown by the command line; the library's default says nothing."""

    def begin(self, what: str, total: int) -> None:
        """A piece of long work begins: ``total`` units of it."""
        ...

    def advance(self, done: int, detail: str = "") -> None:
        """``done`` units of it are finished by now."""
        ...

    def say(self, line: str) -> None:
        """One line worth keeping."""
        ...


class Silent:
    """Says nothing."""

    def begin(self, what: str, total: int) -> None:
        pass

    def advance(self, done: int, detail: str = "") -> None:
        pass

    def say(self, line: str) -> None:
        pass
