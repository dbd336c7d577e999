"""Sets values in YAML text: every comment and every byte that is not concerned stays as it was."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Mapping
from typing import Any

import yaml

from mmc.errors import InvalidError
from mmc.spec.marks import Document, KeyPath, parse

_PLAIN = re.compile(r"^[A-Za-z_./][A-Za-z0-9_./-]*$")
_WORDS = {"true", "false", "null", "yes", "no", "on", "off", "~"}


def flow(value: object) -> str:
    """``value`` as YAML on one line."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{flow(k)}: {flow(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(flow, value)) + "]"
    if isinstance(value, str):
        plain = _PLAIN.match(value) and value.lower() not in _WORDS and not re.match(r"^[-+.0-9]", value)
        return value if plain else _quoted(value)
    if value is None or isinstance(value, bool | int):
        return json.dumps(value)
    if isinstance(value, float):
        return repr(value) if abs(value) < float("inf") else f"{'-' if value < 0 else ''}.inf"
    raise TypeError(f"{type(value).__name__} cannot be written to a spec")


def _quoted(text: str) -> str:
    """``text`` in double quotes, with YAML's escapes for what cannot stand there."""

    def written(character: str) -> str:
        if character in '"\\':
            return "\\" + character
        if character.isprintable():
            return character
        return f"\\U{ord(character):08x}"

    return '"' + "".join(map(written, text)) + '"'


def rewrite(text: str, changes: Mapping[KeyPath, object]) -> str:
    """``text`` with the values at some key paths replaced or added; missing mappings on the way are made.

    Raises InvalidError when ``text`` is not a YAML mapping, KeyError when a path leads through something that is no mapping.
    """
    for path, value in changes.items():
        wanted = copy.deepcopy(parse(text, "spec").data)
        text = _set(text, path, value)
        _put(wanted, path, value)
        try:
            same = parse(text, "spec").data == wanted
        except InvalidError:
            same = False
        if not same:
            name = ".".join(map(str, path))
            raise InvalidError(f"{name} cannot be set in place: an anchor or alias is involved; write the value out")
    return text


def _put(data: Any, path: KeyPath, value: object) -> None:
    """Sets the value in plain data; missing mappings on the way are made."""
    for part in path[:-1]:
        if isinstance(data, dict) and data.get(part) is None:
            data[part] = {}
        data = data[part]
    data[path[-1]] = _plain(value)


def _plain(value: object) -> object:
    """``value`` as YAML gives it back."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _set(text: str, path: KeyPath, value: object) -> str:
    document = parse(text, "spec")
    if path in document.values:
        start, end = _span(text, document.values[path])
        return text[:start] + (" " if start and text[start - 1] == ":" else "") + flow(value) + text[end:]
    parent = path[:-1]
    while parent not in document.values:
        value, parent = {path[len(parent)]: value}, parent[:-1]
    node = document.values[parent]
    key = path[len(parent)]
    if isinstance(node, yaml.ScalarNode) and node.value == "":
        return _set(text, parent, {key: value})
    if not isinstance(node, yaml.MappingNode) or not isinstance(key, str):
        raise KeyError(".".join(map(str, path)))
    return _add(text, document, node, (key, value))


def _span(text: str, node: yaml.Node) -> tuple[int, int]:
    """Where a node's text stands, without the white space and comments that PyYAML counts to a block."""
    last = node
    while isinstance(last, yaml.CollectionNode) and not last.flow_style and last.value:
        last = last.value[-1][1] if isinstance(last, yaml.MappingNode) else last.value[-1]
    end = last.end_mark.index
    if isinstance(last, yaml.ScalarNode) and last.style in ("|", ">"):
        end = len(text[:end].rstrip("\n"))
    return node.start_mark.index, max(node.start_mark.index, end)


def _add(text: str, document: Document, node: yaml.MappingNode, entry: tuple[str, object]) -> str:
    written = f"{flow(entry[0])}: {flow(entry[1])}"
    if node.flow_style:
        close = node.end_mark.index - 1
        before = text[:close].rstrip()
        comma = "" if before.endswith(("{", ",")) else ", "
        return before + (" " if before.endswith(",") else comma) + written + text[close:]
    _, end = _span(text, node)
    line_end = text.find("\n", end)
    line_end = len(text) if line_end < 0 else line_end
    indent = " " * node.start_mark.column
    return text[:line_end] + f"\n{indent}{written}" + (text[line_end:] or "\n")


def rename(text: str, path: KeyPath, key: str) -> str:
    """``text`` with another key for the entry under ``path``; its value and comments stay. Raises KeyError without that entry."""
    node = parse(text, "spec").keys[path]
    return text[: node.start_mark.index] + key + text[node.end_mark.index :]


def remove(text: str, path: KeyPath) -> str:
    """``text`` without the entry under ``path``, and without the comment on its line. Raises KeyError without that entry."""
    document = parse(text, "spec")
    start = document.keys[path].start_mark.index
    _, end = _span(text, document.values[path])
    holder = document.values[path[:-1]]
    assert isinstance(holder, yaml.MappingNode)
    if len(holder.value) == 1 and not holder.flow_style:
        return text[:start] + "{}" + text[end:]
    if holder.flow_style:
        after = re.match(r"\s*,\s*", text[end:])
        if after:
            return text[:start] + text[end + after.end() :]
        return re.sub(r"\s*,?\s*$", "", text[:start]) + text[end:]
    line = text.rfind("\n", 0, start) + 1
    line_end = text.find("\n", end)
    rest = "" if line_end < 0 else text[line_end + 1 :]
    if text[line:start].strip():
        # The first key of an item of a list: the next one takes its place behind the dash.
        return text[:start] + rest.lstrip()
    return text[:line] + rest
