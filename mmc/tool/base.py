"""What a program can call besides an LM."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol


class Tool(Protocol):
    """One callable tool. Constructed once per program, called from many runs at a time."""

    async def __call__(self, arguments: Mapping[str, Any]) -> Any:
        """The tool's result (plain JSON-like data). Raises :class:`mmc.errors.ToolError` when it cannot answer."""
        ...
