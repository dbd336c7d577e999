"""YAML text -> plain data, with the line and column of every key and value.

Scalars follow YAML 1.2's core schema (``1e-5`` is a number, ``no`` is a text) on top of PyYAML's nodes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from mmc.errors import Diagnostic, InvalidError

KeyPath = tuple[str | int, ...]
MAPPING = "a spec begins with `mmc: 1` and `name: ...`; `mmc init DIR` writes one to start from"


WORDS: Mapping[type, str] = {yaml.SequenceNode: "a list", yaml.ScalarNode: "a single text or number"}
"""PyYAML's kinds of nodes in our words."""


class _Loader(yaml.SafeLoader):
    """SafeLoader with the scalars of YAML 1.2."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}


for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", r"~|null|Null|NULL|", "~nN\0"),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+0123456789.",
    ),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), list(_first))


@dataclass(frozen=True)
class Document:
    """A YAML mapping as data, and its nodes: ``values`` by key path, ``keys`` the node of the key itself."""

    file: str
    text: str
    data: dict[str, Any]
    root: yaml.MappingNode
    values: Mapping[KeyPath, yaml.Node]
    keys: Mapping[KeyPath, yaml.Node]

    def diagnostic(self, path: KeyPath, message: str, hint: str = "", at_key: bool = False) -> Diagnostic:
        """A diagnostic at the value under ``path`` (at its key with ``at_key``), or at the nearest thing above it."""
        while path and path not in self.values:
            path, at_key = path[:-1], True
        node = (self.keys if at_key and path in self.keys else self.values).get(path, self.root)
        mark = node.start_mark
        source = self.text.splitlines()[mark.line] if mark.line < len(self.text.splitlines()) else ""
        return Diagnostic(self.file, mark.line + 1, mark.column + 1, message, hint, source=source)


def parse(text: str, file: str) -> Document:
    """Parses one YAML mapping. Raises InvalidError with every problem of form: syntax, duplicate keys, cycles."""
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        raise InvalidError([_syntax(error, text, file)]) from None
    except yaml.YAMLError as error:
        raise InvalidError([Diagnostic(file, 1, 1, f"not valid YAML: {error}")]) from None
    if root is None:
        raise InvalidError([Diagnostic(file, 1, 1, "there is nothing in this file", MAPPING)])
    if not isinstance(root, yaml.MappingNode):
        raise InvalidError(
            [Diagnostic(file, 1, 1, f"a mapping of keys belongs here, not {WORDS[type(root)]}", MAPPING)]
        )
    builder = _Builder(file, text, loader)
    data = builder.build(root, (), ())
    if builder.problems:
        raise InvalidError(sorted(builder.problems))
    return Document(file, text, data, root, builder.values, builder.keys)


def _syntax(error: yaml.MarkedYAMLError, text: str, file: str) -> Diagnostic:
    """What PyYAML says, at its place, and what is usually meant."""
    lines = text.splitlines()
    mark = error.problem_mark or error.context_mark
    line, column = (mark.line, mark.column) if mark else (0, 0)
    source = lines[line] if line < len(lines) else ""
    problem = str(error.problem or error.context)
    if problem.startswith("but "):
        problem = f"{error.context}, {problem}"
    begun = error.context_mark
    if begun is not None and begun.line != line:
        problem += f" (in what begins at line {begun.line + 1})"
    return Diagnostic(
        file, line + 1, column + 1, f"not valid YAML: {problem}", _advice(problem, source, column), source=source
    )


def _advice(problem: str, source: str, column: int) -> str:
    if "'\\t'" in problem:
        return "YAML is indented with spaces, not with tabs"
    if "mapping values are not allowed" in problem:
        return "put a text with a colon in quotes; or the line above is not indented like this one"
    if "block end" in problem:
        return "this line is not indented like the lines it belongs to"
    if "got '['" in problem and re.search(r"\blist$", source[:column]):
        return 'in braces, put a type with brackets in quotes: "list[...]"'
    if "single document" in problem:
        return "a file holds one spec; remove what follows the ---"
    if re.search(r"got '[\]}]'|got '<stream end>'|'\]', but got|'\}', but got", problem):
        return "a bracket or brace that was opened is not closed, or not by its own kind"
    return ""


class _Builder:
    def __init__(self, file: str, text: str, loader: _Loader) -> None:
        self.values: dict[KeyPath, yaml.Node] = {}
        self.keys: dict[KeyPath, yaml.Node] = {}
        self.problems: list[Diagnostic] = []
        self._file, self._text, self._lines, self._loader = file, text, text.splitlines(), loader

    def build(self, node: yaml.Node, path: KeyPath, above: tuple[int, ...]) -> Any:
        self.values[path] = node
        if id(node) in above:
            self._problem(node, "this alias refers to something that contains it: a cycle", "write the value out")
            return None
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path, (*above, id(node)))
        if isinstance(node, yaml.SequenceNode):
            return [self.build(child, (*path, i), (*above, id(node))) for i, child in enumerate(node.value)]
        try:
            return self._loader.construct_object(node, deep=True)
        except (yaml.YAMLError, ValueError) as error:
            if not node.tag.startswith("tag:yaml.org"):
                self._problem(node, f"a spec has no tags such as {node.tag}", "remove it, or put the text in quotes")
            else:
                self._problem(node, f"not a value mmc can read: {getattr(error, 'problem', error)}", "")
            return None

    def _mapping(self, node: yaml.MappingNode, path: KeyPath, above: tuple[int, ...]) -> dict[str, Any]:
        data: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                self._no_key(node, key_node)
                continue
            key = key_node.value
            if key in data:
                self._problem(key_node, f"the key {key!r} stands here twice", "keep one of them")
                continue
            self.keys[(*path, key)] = key_node
            data[key] = self.build(value_node, (*path, key), above)
        return data

    def _no_key(self, holder: yaml.MappingNode, key: yaml.Node) -> None:
        text = self._text[holder.start_mark.index :]
        if text.startswith("{{"):
            expression = text[: text.find("}}") + 2].replace('"', "'")
            self._problem(holder, "an expression must stand in quotes", f'write "{expression}"')
        else:
            self._problem(key, "a key must be a text", "")

    def _problem(self, node: yaml.Node, message: str, hint: str) -> None:
        line, column = node.start_mark.line, node.start_mark.column
        source = self._lines[line] if line < len(self._lines) else ""
        self.problems.append(Diagnostic(self._file, line + 1, column + 1, message, hint, source=source))
