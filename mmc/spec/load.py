"""A spec file or a build folder -> a checked Spec that remembers where everything stands."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails
from yaml import ScalarNode

from mmc.errors import Diagnostic, EnvironmentProblem, InvalidError
from mmc.spec.env import expand
from mmc.spec.marks import Document, KeyPath, parse
from mmc.spec.model import Keys, Spec
from mmc.spec.rewrite import rewrite
from mmc.spec.types import did_you_mean


@dataclass(frozen=True)
class LoadedSpec:
    """A spec, the text it came from (overrides applied) and its place on disk."""

    spec: Spec
    path: Path
    text: str
    document: Document

    @property
    def folder(self) -> Path:
        """What relative paths in the spec are relative to."""
        return self.path.parent

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()

    def diagnostic(self, path: KeyPath, message: str, hint: str = "") -> Diagnostic:
        """A diagnostic at the line and column of what stands under ``path``."""
        return self.document.diagnostic(path, message, hint)

    def resolve(self, text: str) -> Path:
        """A path of the spec as an absolute one. Raises EnvironmentProblem, with its place, when a variable is unset."""
        try:
            return (self.folder / Path(expand(text)).expanduser()).resolve()
        except EnvironmentProblem as error:
            nodes = self.document.values.items()
            place = next((path for path, node in nodes if isinstance(node, ScalarNode) and node.value == text), ())
            raise EnvironmentProblem(self.diagnostic(place, str(error)).render()) from None

    def reparsed(self, text: str) -> LoadedSpec:
        """The same place with another text."""
        return _validated(self.path, text, ())

    def overridden(self, overrides: Sequence[str]) -> LoadedSpec:
        """The spec with some keys overridden, as in :func:`load`."""
        text = self.text
        for override in overrides:
            text = _override(text, override)
        return _validated(self.path, text, overrides)


def load(path: Path, overrides: Sequence[str] = ()) -> LoadedSpec:
    """Loads a spec file, or a build folder that holds a program.yaml.

    ``overrides`` are ``a.b=value`` in the file's own spelling. Raises InvalidError with every problem at once.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "program.yaml"
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InvalidError([Diagnostic(str(path), 0, 0, "there is no such file" + _neighbours(path))]) from None
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidError([Diagnostic(str(path), 0, 0, f"cannot be read as UTF-8 text: {error}")]) from None
    parse(text, str(path))
    for override in overrides:
        text = _override(text, override)
    return _validated(path, text, overrides)


def _neighbours(path: Path) -> str:
    if not path.parent.is_dir():
        return f", and no folder {path.parent}"
    return did_you_mean(path.name, (p.name for p in path.parent.iterdir() if p.suffix in (".yaml", ".yml")))


def _override(text: str, override: str) -> str:
    key, sign, value = override.partition("=")
    if not sign or not key:
        raise InvalidError(f"--set {override}: write it as a.b=value")
    parsed = parse(f"value: {value or '~'}", f"--set {override}").data["value"]
    try:
        return rewrite(text, {_key_path(key): parsed})
    except KeyError:
        raise InvalidError(
            f"--set {override}: there is no mapping at {key.rpartition('.')[0]!r} to set a key in"
        ) from None


def _key_path(key: str) -> KeyPath:
    return tuple(int(part) if part.isdigit() else part for part in key.split("."))


def _validated(path: Path, text: str, overrides: Sequence[str]) -> LoadedSpec:
    document = parse(text, str(path))
    try:
        spec = Spec.model_validate(document.data)
    except ValidationError as error:
        found = {_translate(document, details, overrides) for details in error.errors()}
        raise InvalidError(sorted(found)) from None
    return LoadedSpec(spec, path.resolve(), text, document)


def _translate(document: Document, details: ErrorDetails, overrides: Sequence[str]) -> Diagnostic:
    """One of pydantic's errors in our words, at the key it is about."""
    loc: tuple[str | int, ...] = details["loc"]
    path = _longest(document, loc, ())
    hint = next((f"it was set by --set {o}" for o in overrides if _related(path, _key(o))), "")
    match details["type"]:
        case "extra_forbidden":
            known = _known_keys(document, path)
            message = f"unknown key {loc[-1]!r}.{did_you_mean(str(loc[-1]), known)}"
            if 0 < len(known) <= 12 and "Did you mean" not in message:
                hint = hint or f"known here: {', '.join(sorted(known))}"
            return document.diagnostic(path, message, hint, at_key=True)
        case "missing":
            return document.diagnostic(path, f"the key {loc[-1]!r} is missing here", hint, at_key=True)
        case "union_tag_invalid" | "union_tag_not_found":
            context = details.get("ctx", {})
            tag, expected = str(context.get("tag", "")), str(context.get("expected_tags", ""))
            tags = [word.strip(" '") for word in expected.split(",") if word.strip()]
            key = "algorithm" if (*path, "algorithm") in document.values else "type"
            message = (
                f"unknown {key} {tag!r}; known are {expected}.{did_you_mean(tag, tags)}"
                if tag
                else "the key 'type' is missing"
            )
            return document.diagnostic((*path, key) if (*path, key) in document.values else path, message, hint)
    message = details["msg"].removeprefix("Value error, ")
    shown = details["input"]
    got = f", got {shown!r}" if isinstance(shown, str | int | float | bool) or shown is None else ""
    return document.diagnostic(path, message[0].lower() + message[1:] + got, hint)


def _related(a: KeyPath, b: KeyPath) -> bool:
    """Whether one path leads through the other."""
    return a[: len(b)] == b or (len(a) > 0 and b[: len(a)] == a)


def _key(override: str) -> KeyPath:
    return _key_path(override.partition("=")[0])


def _longest(document: Document, loc: Sequence[str | int], path: KeyPath) -> KeyPath:
    """The longest key path in ``loc``; pydantic puts the tags of unions between the keys."""
    if not loc:
        return path
    skipped = _longest(document, loc[1:], path)
    if (*path, loc[0]) not in document.values:
        return skipped
    taken = _longest(document, loc[1:], (*path, loc[0]))
    return taken if len(taken) > len(skipped) else skipped


def _known_keys(document: Document, path: KeyPath) -> set[str]:
    """Keys that could stand beside the unknown one: those of every mapping that may hold its neighbours."""
    holder: Any = document.data
    for part in path[:-1]:
        holder = holder[part]
    beside = {key for key in holder if key != path[-1]}
    fields = [{f.alias or name for name, f in m.model_fields.items()} for m in _mappings()]
    legal = set().union(*fields)
    fitting = [names for names in fields if (beside & legal) <= names]
    best = [names for names in fitting if holder.get("type") is None or "type" in names]
    return set().union(*best)


def _mappings(base: type[Keys] = Keys) -> Iterator[type[Keys]]:
    for found in base.__subclasses__():
        yield found
        yield from _mappings(found)
