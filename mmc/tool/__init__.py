"""What a program can call besides an LM.

To add a kind: its block as a pydantic model in :mod:`mmc.spec.tools`, a file here whose class satisfies
:class:`mmc.tool.base.Tool`, and an entry in ``TOOLS``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from mmc.spec.load import LoadedSpec
from mmc.tool.base import Tool
from mmc.tool.bm25 import open_bm25
from mmc.tool.http import open_http
from mmc.tool.mcp import open_mcp
from mmc.tool.python import open_python
from mmc.tool.record import Recorded, open_cassette
from mmc.tool.sandbox import open_sandbox

TOOLS: Mapping[str, Callable[[LoadedSpec, str, Any, bool], Tool]] = {
    "bm25": open_bm25,
    "python": open_python,
    "http": open_http,
    "mcp": open_mcp,
    "sandbox": open_sandbox,
}
"""The spec's ``type`` of a tool -> a function of (spec, name, its block, trust) that opens it."""


def make_tool(loaded: LoadedSpec, name: str, trust: bool) -> Tool:
    """Opens one tool of a spec, or what was recorded of it. Raises InvalidError or UsageError that says what is missing."""
    config = loaded.spec.tools[name]
    record = config.record
    if record is not None and record.mode == "replay":
        return Recorded(open_cassette(loaded, name, config), None)
    tool = TOOLS[config.type](loaded, name, config, trust)
    return tool if record is None or record.mode == "off" else Recorded(open_cassette(loaded, name, config), tool)
