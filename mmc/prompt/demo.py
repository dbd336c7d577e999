"""Demonstrations, as they stand in a ``demos`` slot: the template's own user message with a finished answer after it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmc.prompt.slots import escape
from mmc.prompt.template import Template

DEMOS = "demos"
"""Name of the slot that holds demonstrations."""


def demo_source(template: Template, variables: Mapping[str, Any], answer: str) -> str:
    """The source of one demonstration: a user and an assistant block that can be nothing but text.

    Raises ValueError when the template renders no user message.
    """
    bare = template.with_slot(DEMOS, "") if DEMOS in template.slots else template
    users = [m.content for m in bare.render(variables) if m.role == "user"]
    if not users:
        raise ValueError(f"{template.name} has no user message to make a demonstration from")
    return _block("user", users[-1]) + "\n" + _block("assistant", answer)


def demos_source(demos: Sequence[str]) -> str:
    """Several demonstrations, one after the other."""
    return "\n".join(demos)


def _block(role: str, text: str) -> str:
    return f"{{% {role} %}}\n{escape(text)}\n{{% end{role} %}}"
