"""The reference as Markdown: every command with its options, every block of a spec with its keys.

``python -m mmc.cli.reference FOLDER`` writes both pages; a test holds that those in the repository are the present ones.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import mmc.cli

HEAD = "<!-- Written by `make reference`; change the docstrings and help texts instead. -->\n"
ENVIRONMENT = "Every option can also be set in the environment: `MMC_EVAL_SPLIT` is `--split` of `eval`."


def commands_page() -> str:
    """`commands.md`: what each command does, its arguments and options."""
    from mmc.cli.app import command_group

    group = command_group()
    lines = [
        HEAD,
        "# Commands",
        "",
        group.help,
        "",
        (mmc.cli.__doc__ or "").split("\n\n")[1].strip(),
        "",
        ENVIRONMENT,
        "",
    ]
    for name, command in group.commands.items():
        arguments = [p for p in command.params if p.param_type_name == "argument"]
        options = [p for p in command.params if p.param_type_name == "option"]
        usage = " ".join(_argument(p) for p in arguments)
        lines += [f"## mmc {name}", "", f"`mmc {name} {usage}`".replace(" `", "`"), "", command.help, ""]
        rows = [(f"`{_argument(p).strip('[]')}`", p.help or "") for p in arguments]
        rows += [(_option(p), _help(p)) for p in options]
        lines += [*_table(("", "what it does"), rows), ""] if rows else []
    return "\n".join(lines).rstrip() + "\n"


def _argument(parameter: Any) -> str:
    name = (parameter.metavar or parameter.name.upper()).strip("[]")
    return name if parameter.required else f"[{name}]"


def _option(parameter: Any) -> str:
    names = sorted([*parameter.opts, *parameter.secondary_opts], key=len, reverse=True)
    kind = parameter.type_descriptor.annotation
    value = parameter.metavar or getattr(kind, "__name__", "").upper()
    if get_origin(kind) is Literal:
        value = "|".join(get_args(kind))
    return ", ".join(f"`{name}`" if parameter.is_flag else f"`{name} {value}`" for name in names)


def _help(parameter: Any) -> str:
    default = parameter.default
    shown = default not in (None, [], (), False, True, "") and not parameter.required
    return (parameter.help or "") + (f" Default: `{default}`." if shown else "")


def spec_page() -> str:
    """`spec.md`: every block of a spec in the order it is met, with its keys, types, defaults and texts."""
    from mmc.spec.schema import json_schema

    schema = json_schema()
    blocks: Mapping[str, Any] = schema["$defs"]
    lines = [HEAD, "# A spec", "", schema["description"], ""]
    lines += [*_keys(schema), ""]
    for name in _in_order(schema, blocks):
        block = blocks[name]
        lines += [f"## {name}", "", block.get("description", ""), "", *_keys(block), ""]
    return "\n".join(lines).rstrip() + "\n"


def _in_order(schema: Mapping[str, Any], blocks: Mapping[str, Any]) -> Iterator[str]:
    """The blocks, each where it is first named."""
    seen: set[str] = set()
    waiting = list(_named(schema.get("properties", {})))
    while waiting:
        name = waiting.pop(0)
        if name not in seen:
            seen.add(name)
            yield name
            waiting = [*_named(blocks[name].get("properties", {})), *waiting]


def _named(part: Any) -> Iterator[str]:
    """The blocks that a part of the schema refers to."""
    if isinstance(part, Mapping):
        if "$ref" in part:
            yield part["$ref"].rpartition("/")[2]
        for key, value in part.items():
            if key != "discriminator":
                yield from _named(value)
    elif isinstance(part, list):
        for value in part:
            yield from _named(value)


def _keys(block: Mapping[str, Any]) -> list[str]:
    required = block.get("required", [])
    rows = []
    for key, value in block["properties"].items():
        default = _default(value) if key not in required else "required"
        rows.append((f"`{key}`", _type(value), default, value.get("description", "")))
    return _table(("key", "type", "default", "what it says"), rows)


def _default(value: Mapping[str, Any]) -> str:
    default = value.get("default")
    if default is None or isinstance(default, dict):
        return ""
    return f"`{_yaml(default)}`"


def _yaml(value: Any) -> str:
    from mmc.spec.rewrite import flow

    return flow(value)


def _type(value: Mapping[str, Any]) -> str:
    """A JSON schema's type in words."""
    if "$ref" in value:
        name = value["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "const" in value:
        return f"`{_yaml(value['const'])}`"
    if "enum" in value:
        return " or ".join(f"`{_yaml(v)}`" for v in value["enum"])
    for key in ("anyOf", "oneOf"):
        if key in value:
            return " or ".join(dict.fromkeys(_type(part) for part in value[key] if part.get("type") != "null"))
    match value.get("type"):
        case "array":
            if "prefixItems" in value:
                return f"[{', '.join(_type(item) for item in value['prefixItems'])}]"
            return f"list of {_type(value['items'])}" if "items" in value else "list"
        case "object":
            inner = value.get("additionalProperties") or next(iter(value.get("patternProperties", {}).values()), None)
            return f"name: {_type(inner)}" if isinstance(inner, Mapping) and inner else "mapping"
        case kind:
            words = {"string": "text", "integer": "whole number", "number": "number", "boolean": "`true` or `false`"}
            return words.get(str(kind), "anything") + _bounds(value)


def _bounds(value: Mapping[str, Any]) -> str:
    signs = {"exclusiveMinimum": ">", "minimum": "≥", "exclusiveMaximum": "<", "maximum": "≤"}
    found = [f"{sign} {value[key]:g}" for key, sign in signs.items() if key in value]
    return f", {' and '.join(found)}" if found else ""


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |"

    return [line(head), "|" + "---|" * len(head), *map(line, rows)]


PAGES = {"commands.md": commands_page, "spec.md": spec_page}


def main(folder: Path) -> None:
    """Writes the pages to ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, page in PAGES.items():
        (folder / name).write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
