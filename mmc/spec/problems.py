"""Pydantic's errors about a spec in our words, each at the key it is about, all of them at once."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from mmc.errors import Diagnostic
from mmc.spec.marks import Document, KeyPath
from mmc.spec.migrate import FORMER
from mmc.spec.model import STEP_KEYS, Spec
from mmc.spec.shape import DISCRIMINATORS, fields, place_of
from mmc.spec.types import closest, did_you_mean

ROUNDS = 8
"""How often what is wrong is left out and the rest looked at again: some rules are tried only when others hold."""

PATTERNS = {
    r"^[A-Za-z_][A-Za-z0-9_]*$": "a name is made of letters, digits and _, and begins with no digit",
    r"^[A-Za-z0-9][A-Za-z0-9_-]*$": "a spec's name is made of letters, digits, - and _",
    r"^[\w.]+:[\w.]+$": "write a function as package.module:function",
}
"""What a text must be like -> that in words."""

KINDS = {
    "string": "a text",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "list": "a list",
    "tuple": "a list",
    "dict": "a mapping of keys",
    "model": "a mapping of keys",
}
"""First word of pydantic's name of an error about a value's type -> what was expected."""


def read_spec(document: Document, overrides: Sequence[str] = ()) -> tuple[Spec | None, tuple[Diagnostic, ...]]:
    """The spec in a document, and every problem of its shape, sorted by place.

    Where there are problems the spec is what it says less what is wrong (a misspelled key counts as what was meant), so that
    references can be checked all the same; None when that is no spec.
    """
    data = document.data
    found: set[Diagnostic] = set()
    for _ in range(ROUNDS):
        try:
            return Spec.model_validate(data), tuple(sorted(found))
        except ValidationError as error:
            translator = _Translator(document, data, overrides)
            found |= translator.translate(error.errors())
            repaired = translator.repaired()
            if repaired is None:
                break
            data = repaired
    return None, tuple(sorted(found))


class _Translator:
    def __init__(self, document: Document, data: dict[str, Any], overrides: Sequence[str]) -> None:
        self._document, self._overrides = document, overrides
        self._data = copy.deepcopy(data)
        self._whole = True
        """Whether everything wrong could be repaired so far."""

    def translate(self, errors: Sequence[ErrorDetails]) -> set[Diagnostic]:
        """Diagnostics of some errors; what follows from another of them is left out."""
        unknown = [self._path(e["loc"]) for e in errors if e["type"] == "extra_forbidden"]
        found: set[Diagnostic] = set()
        kinds: dict[KeyPath, list[ErrorDetails]] = {}
        paths = {self._path(e["loc"]) for e in errors}
        for error in errors:
            path = self._path(error["loc"])
            if _kind(error) is not None:
                deeper = any(other[: len(path)] == path and len(other) > len(path) for other in paths)
                if not deeper:
                    kinds.setdefault(path, []).append(error)
            elif error["type"] == "missing" and self._renamed(path, str(error["loc"][-1]), unknown):
                continue
            else:
                found |= self._one(error, path)
        return found | {self._wrong_kind(path, same) for path, same in kinds.items()}

    def repaired(self) -> dict[str, Any] | None:
        """The data without what is wrong; None when something is that nothing can stand for."""
        return self._data if self._whole else None

    # --- one error ---

    def _one(self, error: ErrorDetails, path: KeyPath) -> set[Diagnostic]:
        context = error.get("ctx", {})
        match error["type"]:
            case "extra_forbidden":
                return {self._unknown_key(error, path)}
            case "missing":
                self._whole = False
                return {self._at(path, f"the key {error['loc'][-1]!r} is missing here", at_key=True)}
            case "union_tag_invalid" | "union_tag_not_found":
                return {self._wrong_tag(error, path)}
            case "literal_error":
                return {self._wrong_word(path, str(context["expected"]), error["input"])}
            case "step_kind":
                return {self._no_step(path)}
            case "string_pattern_mismatch":
                return {self._pattern(error, path)}
            case "too_short" | "too_long":
                self._whole = False
                return {self._at(path, f"{_named(path)} {_count(error['type'], context)}")}
            case "value_error":
                return {self._rule(path, line) for line in error["msg"].removeprefix("Value error, ").splitlines()}
        self._leave_out(path)
        message = error["msg"].removeprefix("Input should be ")
        return {self._at(path, f"{_named(path)} must be {message}{_got(error['input'])}")}

    def _unknown_key(self, error: ErrorDetails, path: KeyPath) -> Diagnostic:
        key, place = str(error["loc"][-1]), place_of(error["loc"][:-1])
        known = fields(place.block) if place.block is not None else {}
        holder = self._holder(path)
        steps = [name for name in holder if name in STEP_KEYS]
        value = holder.pop(key, None)
        if len(steps) > 1 and key in steps:
            self._whole = False
            return self._at(
                path, f"a step does one thing; this one has {' and '.join(f'`{s}`' for s in steps)}", at_key=True
            )
        elsewhere = place.knowing(key)
        if elsewhere:
            deciding = next((k for k in DISCRIMINATORS if k in known), "type")
            means = ", ".join(f"`{deciding}: {tag}`" for tag in elsewhere)
            return self._at(path, f"{key!r} is no key of this block", f"it belongs to {means}", at_key=True)
        meant = closest(key, known)
        if meant is not None and meant not in holder:
            holder[meant] = value
        if meant is None and key in FORMER:
            return self._at(path, f"unknown key {key!r}", FORMER[key], at_key=True)
        listed = f"known here: {', '.join(sorted(known))}" if 0 < len(known) <= 12 and meant is None else ""
        return self._at(path, f"unknown key {key!r}.{did_you_mean(key, known)}", listed, at_key=True)

    def _wrong_tag(self, error: ErrorDetails, path: KeyPath) -> Diagnostic:
        tags = place_of(error["loc"]).tags
        known = ", ".join(tags)
        key = next((k for k in DISCRIMINATORS if (*path, k) in self._document.values), "type")
        said = self._value(path)
        tag = str(said.get(key, "")) if isinstance(said, Mapping) else ""
        if not tag:
            self._whole = False
            return self._at(path, "the key 'type' is missing here", f"known are: {known}", at_key=True)
        return self._wrong_word((*path, key), known, tag, f"unknown {key} {tag!r}; known are {known}.", tags)

    def _wrong_word(
        self, path: KeyPath, expected: str, got: object, message: str = "", words: Sequence[str] = ()
    ) -> Diagnostic:
        """A word that is none of those that may stand here."""
        words = words or re.findall(r"'([^']*)'", expected)
        meant = closest(str(got), words)
        if meant is None:
            self._leave_out(path)
        else:
            self._put(path, meant)
        message = message or f"{_named(path)} must be {expected}, got {got!r}."
        return self._at(path, message + did_you_mean(str(got), words))

    def _no_step(self, path: KeyPath) -> Diagnostic:
        self._whole = False
        step = self._value(path)
        message = f"a step needs one of: {', '.join(STEP_KEYS)}."
        near = [(key, meant) for key in step if (meant := closest(key, STEP_KEYS))] if isinstance(step, Mapping) else []
        if near:
            key, meant = near[0]
            return self._at((*path, key), f"{message} Did you mean {meant!r} where {key!r} stands?", at_key=True)
        return self._at(path, message)

    def _pattern(self, error: ErrorDetails, path: KeyPath) -> Diagnostic:
        pattern = str(error.get("ctx", {})["pattern"])
        self._whole = False
        at_key = error["loc"][-1] == "[key]"
        return self._at(path, f"{PATTERNS[pattern]}; this is {error['input']!r}", at_key=at_key)

    def _rule(self, path: KeyPath, line: str) -> Diagnostic:
        """A rule of a block; it begins with the key in backquotes that it is about, where that stands in the block."""
        named = re.match(r"`([\w.]+)`", line)
        inside = (*path, *named[1].split(".")) if named else path
        place = inside if inside in self._document.values else path
        self._leave_out(place)
        return self._at(place, line, at_key=True)

    def _wrong_kind(self, path: KeyPath, errors: Sequence[ErrorDetails]) -> Diagnostic:
        """A value of the wrong type; ``errors`` has one for each type that it could have had."""
        value = errors[0]["input"]
        self._leave_out(path)
        wanted = list(dict.fromkeys(KINDS[str(_kind(error))] for error in errors))
        hint = ""
        if wanted == ["a text"] and isinstance(value, int | float):
            hint = f'put it in quotes: "{value}"'.replace("True", "true").replace("False", "false")
        if isinstance(value, Mapping) and len(value) == 1 and next(iter(value)).startswith("{"):
            hint = "put an expression in quotes"
        return self._at(path, f"{_named(path)} must be {' or '.join(wanted)}{_got(value)}", hint)

    # --- small things ---

    def _at(self, path: KeyPath, message: str, hint: str = "", at_key: bool = False) -> Diagnostic:
        hint = hint or next((f"it was set by --set {o}" for o in self._overrides if _related(path, _key(o))), "")
        return self._document.diagnostic(path, message, hint, at_key=at_key)

    def _path(self, loc: Sequence[str | int]) -> KeyPath:
        return _longest(self._document, loc, ())

    def _renamed(self, path: KeyPath, key: str, unknown: Sequence[KeyPath]) -> bool:
        """Whether a key is missing because it stands there misspelled."""
        beside = [other for other in unknown if other[:-1] == path]
        return any(closest(str(other[-1]), fields(block)) == key for other in beside if (block := self._block(path)))

    def _block(self, path: KeyPath) -> Any:
        loc: list[str | int] = []
        said: Any = self._document.data
        for part in path:
            loc.append(part)
            said = said[part]
            if isinstance(said, Mapping):
                tags = [str(said[k]) for k in DISCRIMINATORS if isinstance(said.get(k), str)]
                tags += [key for key in STEP_KEYS if key in said]
                place = place_of(loc)
                loc += [tag for tag in tags if place.block is None and place_of([*loc, tag]).block is not None][:1]
        return place_of(loc).block

    def _value(self, path: KeyPath) -> Any:
        found: Any = self._document.data
        for part in path:
            found = found[part]
        return found

    def _holder(self, path: KeyPath) -> dict[str, Any]:
        """The mapping in the data to repair that holds a key; an empty one when it is there no more."""
        found: Any = self._data
        for part in path[:-1]:
            try:
                found = found[part]
            except (KeyError, IndexError, TypeError):
                return {}
        return found if isinstance(found, dict) else {}

    def _put(self, path: KeyPath, value: object) -> None:
        found: Any = self._data
        try:
            for part in path[:-1]:
                found = found[part]
            found[path[-1]] = value
        except (KeyError, IndexError, TypeError):
            self._whole = False

    def _leave_out(self, path: KeyPath) -> None:
        """Takes a key that has a default out of the data."""
        block = self._block(path[:-1]) if path else None
        if block is None or fields(block).get(str(path[-1]), True):
            self._whole = False
        else:
            self._holder(path).pop(str(path[-1]), None)


def _kind(error: ErrorDetails) -> str | None:
    """What was expected, for an error about the type of a value."""
    head, _, tail = error["type"].partition("_")
    return head if head in KINDS and tail in ("type", "parsing", "from_float", "attributes_type") else None


def _count(kind: str, context: Mapping[str, Any]) -> str:
    if kind == "too_long":
        return f"takes {context['max_length']} at most"
    return f"needs {context['min_length']} or more, has {context['actual_length']}"


def _named(path: KeyPath) -> str:
    """What a message is about: a key, or an entry of a list."""
    if path and isinstance(path[-1], int):
        return f"an entry of `{path[-2]}`" if len(path) > 1 else "an entry"
    return f"`{path[-1]}`" if path else "this"


def _got(value: object) -> str:
    if value is None:
        return ", but nothing stands here"
    if isinstance(value, bool):
        return f", got {str(value).lower()}"
    return f", got {value!r}" if isinstance(value, str | int | float) else f", got {_called(value)}"


def _called(value: object) -> str:
    return "a list" if isinstance(value, list) else "a mapping"


def _related(a: KeyPath, b: KeyPath) -> bool:
    """Whether one path leads through the other."""
    return a[: len(b)] == b or (len(a) > 0 and b[: len(a)] == a)


def key_path(key: str) -> KeyPath:
    """``a.0.b`` as a path."""
    return tuple(int(part) if part.isdigit() else part for part in key.split("."))


def _key(override: str) -> KeyPath:
    return key_path(override.partition("=")[0])


def _longest(document: Document, loc: Sequence[str | int], path: KeyPath) -> KeyPath:
    """The longest key path in ``loc``; pydantic puts the tags of unions between the keys."""
    if not loc:
        return path
    skipped = _longest(document, loc[1:], path)
    if (*path, loc[0]) not in document.values:
        return skipped
    taken = _longest(document, loc[1:], (*path, loc[0]))
    return taken if len(taken) > len(skipped) else skipped
