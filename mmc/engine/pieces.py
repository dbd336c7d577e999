"""The text of a completion while it grows, piece by piece."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mmc.engine.base import Watch

UNFINISHED = "\N{REPLACEMENT CHARACTER}"
"""What stands at the end of a text whose last character has not all its bytes yet."""


class Pieces:
    """Gives ``watch`` what is new in the text of growing token ids; the pieces together are the text."""

    def __init__(self, decode: Callable[[Sequence[int]], str], watch: Watch) -> None:
        self._decode, self._watch = decode, watch
        self._told = ""

    def grow(self, ids: Sequence[int]) -> None:
        """``ids`` are all tokens so far. What may still change is held back."""
        self.finish(self._decode(ids).rstrip(UNFINISHED))

    def finish(self, text: str) -> None:
        """``text`` is what stands there, whole."""
        if len(text) > len(self._told) and text.startswith(self._told):
            self._watch(text[len(self._told) :])
            self._told = text
