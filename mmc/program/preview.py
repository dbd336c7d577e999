"""The exact messages of a module for an example, their tokens, and how much of them is the same for every example."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmc.engine.base import Message
from mmc.engine.tokens import Counter
from mmc.errors import InvalidError, RunFailure
from mmc.program.graph import Program

EXAMPLES = 64
"""Most examples that what is shared is looked for in."""


@dataclass(frozen=True)
class Shared:
    """The beginning of the prompt that is the same for some examples: computed once by a local model, for all of them."""

    tokens: int
    examples: int


@dataclass(frozen=True)
class Preview:
    """A module's messages; ``counts`` are the tokens of each, ``tokens`` of all with the chat template. None: not known."""

    messages: tuple[Message, ...]
    counts: tuple[int | None, ...]
    tokens: int | None
    shared: Shared | None


def preview(
    program: Program, module: str, known: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], counter: Counter | None
) -> Preview:
    """What a module would be sent. ``known`` are values for its inputs; ``rows`` of the data take the place of those that
    they name when it is looked for what is shared, and the other values are varied.

    Raises InvalidError when the template cannot be rendered.
    """
    messages = _messages(program, module, known)
    if counter is None:
        return Preview(messages, (None,) * len(messages), None, None)
    total = counter.count(messages)
    if counter.ids is None:
        return Preview(messages, tuple(counter.count([m]) for m in messages), total, None)
    return Preview(messages, _counts(messages, counter), total, _shared(program, module, known, rows, counter))


def _messages(program: Program, module: str, known: Mapping[str, Any]) -> tuple[Message, ...]:
    inputs = {name: known[name] for name in program.spec.modules[module].inputs}
    return program.templates[module].render(program.prompt_variables(module, inputs))


def _counts(messages: Sequence[Message], counter: Counter) -> tuple[int | None, ...]:
    """Tokens that each message adds, with its marks; unknown where a chat template takes no beginning of a conversation."""
    assert counter.ids is not None
    from jinja2 import TemplateError

    sizes: list[int | None] = [0]
    for end in range(1, len(messages) + 1):
        try:
            sizes.append(len(counter.ids(messages[:end], False)))
        except TemplateError:
            sizes.append(None)
    pairs = itertools.pairwise(sizes)
    return tuple(None if before is None or after is None else after - before for before, after in pairs)


def _shared(
    program: Program, module: str, known: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], counter: Counter
) -> Shared | None:
    """The common beginning over the rows, with values that no row has varied; None when there is nothing to compare."""
    assert counter.ids is not None
    inputs = program.spec.modules[module].inputs
    others = [{**known, **{name: row[name] for name in inputs if name in row}} for row in rows[:EXAMPLES]]
    given = [name for name in inputs if not rows or name not in rows[0]]
    others += [{**known, name: _varied(known[name])} for name in given]
    prompts = [counter.ids(_messages(program, module, known), True)]
    for values in others:
        try:
            prompts.append(counter.ids(_messages(program, module, values), True))
        except (RunFailure, InvalidError):
            continue  # an example whose values the template cannot render
    if len(prompts) < 2:
        return None
    same = itertools.takewhile(lambda tokens: len(set(tokens)) == 1, zip(*prompts, strict=False))
    return Shared(sum(1 for _ in same), max(1, len(rows[:EXAMPLES])))


def _varied(value: Any) -> Any:
    """Another value of the same type."""
    match value:
        case bool():
            return not value
        case int() | float():
            return value + 1
        case str():
            return f"~{value}"
        case list():
            return [_varied(item) for item in value] or ["~"]
        case dict():
            return {key: _varied(item) for key, item in value.items()}
    return value
