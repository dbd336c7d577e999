"""The sandboxed Jinja environment of templates and expressions, and the tags that make chat messages.

``{% system %}``, ``{% user %}`` and ``{% assistant %}`` blocks become messages. A block's text is collected apart from the
template's output, so nothing that is rendered into a message can begin or end one.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

from jinja2 import BaseLoader, StrictUndefined, TemplateSyntaxError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

ROLES = ("system", "user", "assistant")
collected: ContextVar[list[tuple[str, str]]] = ContextVar("collected")
"""Messages (role, text) of the render that is going on."""


class MessageBlocks(Extension):
    """``{% user %}...{% enduser %}`` and its like."""

    tags = set(ROLES)

    def parse(self, parser: Parser) -> nodes.Node:
        token = next(parser.stream)
        if getattr(parser, "mmc_open_message", False):
            raise TemplateSyntaxError(f"a {token.value} block cannot stand inside another message", token.lineno)
        parser.mmc_open_message = True  # type: ignore[attr-defined]
        body = parser.parse_statements((f"name:end{token.value}",), drop_needle=True)
        parser.mmc_open_message = False  # type: ignore[attr-defined]
        call = self.call_method("_collect", [nodes.Const(token.value)], lineno=token.lineno)
        return nodes.CallBlock(call, [], [], body).set_lineno(token.lineno)

    def _collect(self, role: str, caller: Callable[[], str]) -> str:
        collected.get().append((role, str(caller()).strip()))
        return ""


class Slots(Extension):
    """``{% slot name %}...{% endslot %}``: renders as what it holds; prompt search may put something else there."""

    tags = {"slot"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        line = next(parser.stream).lineno
        if getattr(parser, "mmc_open_slot", False):
            raise TemplateSyntaxError("a slot cannot stand inside another slot", line)
        parser.stream.expect("name")
        parser.mmc_open_slot = True  # type: ignore[attr-defined]
        body = parser.parse_statements(("name:endslot",), drop_needle=True)
        parser.mmc_open_slot = False  # type: ignore[attr-defined]
        return body


def environment(loader: BaseLoader | None = None) -> ImmutableSandboxedEnvironment:
    """A fresh environment: sandboxed, immutable, strict about names that are not there."""
    return ImmutableSandboxedEnvironment(
        loader=loader,
        extensions=[MessageBlocks, Slots],
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,
    )


Values = dict[str, Any]
