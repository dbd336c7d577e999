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
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line, mark.column) if mark else (0, 0)
        source = text.splitlines()[line] if line < len(text.splitlines()) else ""
        problem = " ".join(part for part in (error.context, error.problem) if part)
        raise InvalidError(
            [Diagnostic(file, line + 1, column + 1, f"not valid YAML: {problem}", source=source)]
        ) from None
    except yaml.YAMLError as error:
        raise InvalidError([Diagnostic(file, 1, 1, f"not valid YAML: {error}")]) from None
    if not isinstance(root, yaml.MappingNode):
        raise InvalidError([Diagnostic(file, 1, 1, "a spec is a mapping of keys, such as `mmc: 1` and `name: ...`")])
    builder = _Builder(file, text, loader)
    data = builder.build(root, (), ())
    if builder.problems:
        raise InvalidError(sorted(builder.problems))
    return Document(file, text, data, root, builder.values, builder.keys)


class _Builder:
    def __init__(self, file: str, text: str, loader: _Loader) -> None:
        self.values: dict[KeyPath, yaml.Node] = {}
        self.keys: dict[KeyPath, yaml.Node] = {}
        self.problems: list[Diagnostic] = []
        self._file, self._lines, self._loader = file, text.splitlines(), loader

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
            self._problem(node, f"not a value mmc can read: {getattr(error, 'problem', error)}", "")
            return None

    def _mapping(self, node: yaml.MappingNode, path: KeyPath, above: tuple[int, ...]) -> dict[str, Any]:
        data: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                self._problem(key_node, "a key must be a text", "")
                continue
            key = key_node.value
            if key in data:
                self._problem(key_node, f"the key {key!r} stands here twice", "keep one of them")
                continue
            self.keys[(*path, key)] = key_node
            data[key] = self.build(value_node, (*path, key), above)
        return data

    def _problem(self, node: yaml.Node, message: str, hint: str) -> None:
        line, column = node.start_mark.line, node.start_mark.column
        source = self._lines[line] if line < len(self._lines) else ""
        self.problems.append(Diagnostic(self._file, line + 1, column + 1, message, hint, source=source))
