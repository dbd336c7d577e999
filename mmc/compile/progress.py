"""What a compile tells while it goes on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from mmc.engine.base import Engine


class Progress(Protocol):
    """Shown by the command line; the library's default says nothing."""

    def watch(self, engines: Sequence[Engine]) -> None:
        """The engines that answer from now on: they know what was spent."""
        ...

    def stage(self, name: str, number: int, stages: int) -> None:
        """A stage of the strategy begins, ``number`` from 1 of ``stages``."""
        ...

    def begin(self, what: str, total: int) -> None:
        """A piece of long work begins: ``total`` units of it."""
        ...

    def advance(self, done: int, detail: str = "", value: float | None = None) -> None:
        """``done`` units of it are finished by now; ``value`` is what is to be followed: a reward, a score, a loss."""
        ...

    def say(self, line: str) -> None:
        """One line worth keeping."""
        ...


class Silent:
    """Says nothing."""

    def watch(self, engines: Sequence[Engine]) -> None:
        pass

    def stage(self, name: str, number: int, stages: int) -> None:
        pass

    def begin(self, what: str, total: int) -> None:
        pass

    def advance(self, done: int, detail: str = "", value: float | None = None) -> None:
        pass

    def say(self, line: str) -> None:
        pass
