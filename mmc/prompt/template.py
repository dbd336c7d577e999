"""A ``.j2`` file: renders to chat messages; its slots can be rewritten in place."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jinja2
from jinja2 import meta, nodes

from mmc.engine.base import Message
from mmc.errors import Diagnostic, InvalidError, RunFailure
from mmc.prompt.environment import collected, environment, explained
from mmc.prompt.slots import fill, find_slots
from mmc.spec.types import did_you_mean

MAX_CHARACTERS = 200_000
"""Longest prompt a template may render to."""
OUTSIDE = "text outside of system, user and assistant blocks"


@dataclass(frozen=True)
class Template:
    """A template's place and source. Built by :meth:`load`; edits give new ones."""

    path: Path
    source: str

    @classmethod
    def load(cls, path: Path) -> Template:
        """Reads and checks a template. Raises InvalidError with file and line."""
        try:
            source = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            close = did_you_mean(path.name, (p.name for p in path.parent.glob("*"))) if path.parent.is_dir() else ""
            raise InvalidError([Diagnostic(str(path), 0, 0, f"there is no such template.{close}")]) from None
        except UnicodeDecodeError as error:
            raise InvalidError([Diagnostic(str(path), 0, 0, f"this is not UTF-8 text: {error}")]) from None
        except OSError as error:
            raise InvalidError([Diagnostic(str(path), 0, 0, f"cannot be read: {error.strerror}")]) from None
        template = cls(path, source)
        _ = template.variables
        template._check_slots()
        template._check_outside()
        return template

    @property
    def name(self) -> str:
        return self.path.name

    @cached_property
    def includes(self) -> Mapping[str, str]:
        """Source of everything the template includes, directly or not, by the name it is included under."""
        found: dict[str, str] = {}
        waiting = [self.source]
        while waiting:
            for name in meta.find_referenced_templates(self._environment.parse(waiting.pop())):
                if name is not None and name not in found:
                    found[name] = (self.path.parent / name).read_text(encoding="utf-8")
                    waiting.append(found[name])
        return found

    @property
    def sha256(self) -> str:
        """SHA-256 of the source and of all it includes."""
        found = hashlib.sha256(self.source.encode())
        for name, source in sorted(self.includes.items()):
            found.update(f"\0{name}\0{source}".encode())
        return found.hexdigest()

    @cached_property
    def slots(self) -> Mapping[str, str]:
        """Slot name -> its source text, without the line breaks next to the tags."""
        return {slot.name: self.source[slot.start : slot.end].strip("\n") for slot in find_slots(self.source)}

    @cached_property
    def variables(self) -> frozenset[str]:
        """Names the template and what it includes expect, ``choices`` excepted."""
        return frozenset(self._names(self.source, self.path, ())) - {"choices", *self._environment.globals}

    @cached_property
    def _compiled(self) -> jinja2.Template:
        return self._environment.from_string(self.source)

    @cached_property
    def _environment(self) -> jinja2.Environment:
        return environment(jinja2.FileSystemLoader(self.path.parent))

    def render(self, variables: Mapping[str, Any]) -> tuple[Message, ...]:
        """The chat messages. Raises InvalidError when a name is missing, RunFailure when rendering fails otherwise."""
        messages: list[tuple[str, str]] = []
        token = collected.set(messages)
        try:
            outside = self._limited(variables)
        except jinja2.UndefinedError as error:
            raise InvalidError(
                [Diagnostic(str(self.path), 0, 0, f"the template cannot be rendered: {error}")]
            ) from None
        except jinja2.TemplateSyntaxError as error:
            raise InvalidError(
                [self._at(self.path, error.lineno, f"not a valid template: {explained(error)}")]
            ) from None
        except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError) as error:
            raise RunFailure(f"{self.path.name}: {type(error).__name__}: {error}") from error
        finally:
            collected.reset(token)
        if outside.strip() and messages:
            shown = outside.strip().splitlines()[0][:60]
            raise InvalidError([Diagnostic(str(self.path), 0, 0, f"{OUTSIDE}: {shown!r}", "move it into a block")])
        if not messages:
            messages = [("user", outside.strip())]
        return tuple(Message(role, text) for role, text in messages)  # type: ignore[arg-type]

    def _limited(self, variables: Mapping[str, Any]) -> str:
        size, pieces = 0, []
        for piece in self._compiled.generate(dict(variables)):
            size += len(piece)
            if size + sum(len(text) for _, text in collected.get()) > MAX_CHARACTERS:
                raise RunFailure(f"{self.path.name} renders to more than {MAX_CHARACTERS:,} characters")
            pieces.append(piece)
        return "".join(pieces)

    def with_slot(self, name: str, text: str) -> Template:
        """The template with ``text`` (template source; escape what is not) in a slot; all other bytes stay.

        Raises KeyError when there is no such slot, ValueError when ``text`` would open or close one.
        """
        slot = next((s for s in find_slots(self.source) if s.name == name), None)
        if slot is None:
            raise KeyError(name)
        changed = Template(self.path, fill(self.source, slot, text))
        if list(changed.slots) != list(self.slots):
            raise ValueError(f"the text for the slot {name!r} would change which slots there are; escape it")
        return changed

    def _check_slots(self) -> None:
        seen: set[str] = set()
        for slot in find_slots(self.source):
            if slot.name in seen:
                line = self.source.count("\n", 0, slot.start) + 1
                raise InvalidError([self._at(self.path, line, f"the slot {slot.name!r} stands here a second time")])
            seen.add(slot.name)

    def _check_outside(self) -> None:
        """Raises InvalidError for text that stands outside of every message, beside messages."""
        body = self._environment.parse(self.source).body
        if not any(isinstance(node, nodes.CallBlock) for node in body):
            return
        for node in body:
            for part in node.nodes if isinstance(node, nodes.Output) else ():
                text = part.data if isinstance(part, nodes.TemplateData) else "{{"
                if text.strip():
                    line = part.lineno + text[: len(text) - len(text.lstrip())].count("\n")
                    raise InvalidError([self._at(self.path, line, OUTSIDE, "move it into a block")])

    def _at(self, path: Path, line: int, message: str, hint: str = "") -> Diagnostic:
        """A diagnostic at a line of this template, or of one that it includes."""
        lines = (self.source if path == self.path else path.read_text(encoding="utf-8")).splitlines()
        source = lines[line - 1] if 0 < line <= len(lines) else ""
        column = len(source) - len(source.lstrip()) + 1 if source.strip() else 0
        return Diagnostic(str(path), line, column, message, hint, source=source)

    def _names(self, source: str, path: Path, above: tuple[Path, ...]) -> set[str]:
        """Undeclared names of a template and its includes. Raises InvalidError for syntax and include cycles."""
        if path in above:
            circle = " -> ".join(p.name for p in (*above[above.index(path) :], path))
            raise InvalidError([Diagnostic(str(self.path), 0, 0, f"templates include each other in a cycle: {circle}")])
        try:
            tree = self._environment.parse(source)
            names = meta.find_undeclared_variables(tree)
        except jinja2.TemplateSyntaxError as error:
            message = f"not a valid template: {explained(error)}"
            raise InvalidError([self._at(path, error.lineno, message)]) from None
        for included in meta.find_referenced_templates(tree):
            if included is not None:
                names |= self._included(included, source, path, above)
        return names

    def _included(self, name: str, source: str, path: Path, above: tuple[Path, ...]) -> set[str]:
        inner = self.path.parent / name
        if not inner.is_file():
            line = next((i for i, text in enumerate(source.splitlines(), 1) if name in text), 0)
            raise InvalidError([self._at(path, line, f"includes {name!r}, which is not there")])
        return self._names(inner.read_text(encoding="utf-8"), inner, (*above, path))

    def line_of(self, name: str) -> tuple[int, str]:
        """Line (from 1) that first speaks of ``name``, and its text; (0, "") when none does."""
        for number, line in enumerate(self.source.splitlines(), 1):
            if re.search(rf"\b{re.escape(name)}\b", line):
                return number, line
        return 0, ""
