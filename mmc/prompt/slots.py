"""Finds the slots of a template's source text, and puts other text into one."""

from __future__ import annotations

import re
from typing import NamedTuple

# Texts in quotes are passed over whole: a tag written inside one is no tag.
_INSIDE = r"""(?:"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|[^"'])*?"""
_PIECES = re.compile(
    r"(?P<comment>\{#.*?#\})"
    r"|(?P<raw>\{%[-+]?\s*raw\s*[-+]?%\}.*?\{%[-+]?\s*endraw\s*[-+]?%\})"
    r"|(?P<slot>\{%[-+]?\s*slot\s+(?P<name>\w+)\s*[-+]?%\})"
    r"|(?P<end>\{%[-+]?\s*endslot\s*[-+]?%\})"
    rf"|(?P<other>\{{%{_INSIDE}%\}}|\{{\{{{_INSIDE}\}}\}})",
    re.DOTALL,
)


class Slot(NamedTuple):
    """A slot's name and where what it holds begins and ends in the source."""

    name: str
    start: int
    end: int


def find_slots(source: str) -> list[Slot]:
    """The slots of ``source`` in order. Comments and raw blocks are passed over."""
    found: list[Slot] = []
    opened: tuple[str, int] | None = None
    for match in _PIECES.finditer(source):
        if match.lastgroup == "end" and opened:
            found.append(Slot(opened[0], opened[1], match.start()))
            opened = None
        elif match["slot"]:
            opened = (match["name"], match.end())
    return found


def fill(source: str, slot: Slot, text: str) -> str:
    """``source`` with ``text`` in ``slot``: on lines of its own where the slot's tags stand on lines of their own."""
    before = source[slot.start : slot.end]
    if "\n" in before:
        indent = before.rpartition("\n")[2]
        body = text.strip("\n")
        text = f"\n{body}\n{indent}" if body else f"\n{indent}"
    return source[: slot.start] + text + source[slot.end :]


def escape(text: str) -> str:
    """Template source that renders to ``text`` and can never be anything but text."""
    text = re.sub(r"\{(?=[{%#]|$)", "{{ '{' }}", text)
    return text.replace("\r", "{{ '\\r' }}")
