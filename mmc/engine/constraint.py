"""What a constraint allows next, token by token.

A choice is followed along the canonical tokenizations of its options: one way to write each option, so every draw decides
between options and the rest is forced. Grammars (JSON schema, regex) go through llguidance.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmc.engine.base import Choice, Constraint, JsonSchema, Regex
from mmc.errors import RunFailure, needing


@dataclass(eq=False)
class _Branch:
    children: dict[int, _Branch] = field(default_factory=dict)
    allowed: NDArray[np.int32] = field(default_factory=lambda: np.empty(0, dtype=np.int32))

    def close(self) -> None:
        self.allowed = np.array(sorted(self.children), dtype=np.int32)
        for child in self.children.values():
            child.close()


class ChoiceMatcher:
    """Follows one of several token sequences, each ended by the end-of-turn token."""

    def __init__(self, root: _Branch) -> None:
        self._here = root

    def allowed(self) -> NDArray[np.int32]:
        return self._here.allowed

    def advance(self, token: int) -> None:
        self._here = self._here.children[token]


class GrammarMatcher:
    """Follows a grammar compiled by llguidance; once it accepts and can go no further, end of turn is forced."""

    def __init__(self, tokenizer: Any, grammar: str, vocabulary: int, stops: frozenset[int]) -> None:
        import llguidance

        self._matcher = llguidance.LLMatcher(tokenizer, grammar)
        if self._matcher.is_error():
            raise RunFailure(f"the constraint cannot be compiled: {self._matcher.get_error()}")
        self._vocabulary = vocabulary
        self._stops = np.array(sorted(stops), dtype=np.int32)

    def allowed(self) -> NDArray[np.int32]:
        if self._matcher.is_stopped():
            return self._stops[:1]
        bits = np.unpackbits(np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8), bitorder="little")
        return np.flatnonzero(bits[: self._vocabulary]).astype(np.int32)

    def advance(self, token: int) -> None:
        self._matcher.consume_token(token)


class Constraints:
    """Makes matchers for one tokenizer; compiled forms are kept."""

    def __init__(self, tokenizer: Any, vocabulary: int, stops: frozenset[int]) -> None:
        self._tokenizer = tokenizer
        self._vocabulary = vocabulary
        self._stops = stops
        self._choices = lru_cache(maxsize=4096)(self._compile_choice)
        self._guidance: Any = None

    def matcher(self, constraint: Constraint) -> ChoiceMatcher | GrammarMatcher:
        """A fresh matcher at the beginning of a completion."""
        if isinstance(constraint, Choice):
            return ChoiceMatcher(self._choices(constraint.options))
        return GrammarMatcher(self._llguidance(), self._grammar(constraint), self._vocabulary, self._stops)

    def _compile_choice(self, options: tuple[str, ...]) -> _Branch:
        root, end = _Branch(), min(self._stops)
        for ids in self._tokenizer(list(options), add_special_tokens=False)["input_ids"]:
            here = root
            for token in (*ids, end):
                here = here.children.setdefault(token, _Branch())
        root.close()
        return root

    def _grammar(self, constraint: JsonSchema | Regex) -> str:
        import llguidance

        if isinstance(constraint, JsonSchema):
            # As json.dumps writes it, so that demonstrations look like what is decoded, and nothing is spent on white space.
            style = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
            return str(llguidance.LLMatcher.grammar_from_json_schema(constraint.schema, overrides=style))
        return str(llguidance.LLMatcher.grammar_from_regex(constraint.pattern))

    def _llguidance(self) -> Any:
        if self._guidance is None:
            with needing("local", "constrained decoding"):
                import llguidance.hf
            self._guidance = llguidance.hf.from_tokenizer(self._tokenizer, self._vocabulary)
        return self._guidance
