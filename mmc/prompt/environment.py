"""The sandboxed Jinja environment of templates and expressions, and the tags that make chat messages.

``{% system %}``, ``{% user %}`` and ``{% assistant %}`` blocks become messages. A block's text is collected apart from the
template's output, so nothing that is rendered into a message can begin or end one.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

from jinja2 import BaseLoader, StrictUndefined, TemplateSyntaxError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from mmc.spec.types import did_you_mean

ROLES = ("system", "user", "assistant")
collected: ContextVar[list[tuple[str, str]]] = ContextVar("collected")
"""Messages (role, text) of the render that is going on."""


class MessageBlocks(Extension):
    """``{% user %}...{% enduser %}`` and its like."""

    tags = set(ROLES)

    def parse(self, parser: Parser) -> nodes.Node:
        token = next(parser.stream)
        if getattr(parser, "mmc_open_message", False):
            raise TemplateSyntaxError(f"`{token.value}` cannot stand inside another message", token.lineno)
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


def explained(error: TemplateSyntaxError) -> str:
    """Jinja's message, with the filter or test that was probably meant."""
    message = str(error.message).rstrip(".")
    for said, meant in (("end of print statement", "}}"), ("end of statement block", "%}")):
        message = message.replace(said, meant)
    unknown = re.match(r"No (filter|test) named '(\w+)'", message)
    if unknown is None:
        return message
    known = environment().filters if unknown[1] == "filter" else environment().tests
    return f"there is no {unknown[1]} {unknown[2]!r}.{did_you_mean(unknown[2], known)}"


Values = dict[str, Any]
