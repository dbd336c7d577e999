"""A spec's expressions as Python: what means the same in both is written out, the rest stays Jinja, which the file evaluates."""

from __future__ import annotations

import ast
import builtins
import keyword
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import TemplateSyntaxError, nodes

from mmc.errors import UsageError
from mmc.program.expression import names_in
from mmc.prompt import environment

_ENVIRONMENT = environment()
_WHOLE = re.compile(r"^\s*\{\{(.*)\}\}\s*$", re.DOTALL)
_COMPARED = {"eq": "==", "ne": "!=", "lt": "<", "lteq": "<=", "gt": ">", "gteq": ">=", "in": "in", "notin": "not in"}
_DICT = frozenset(dir(dict))
"""Attributes that a mapping has itself, which Jinja gives before the entries of the same name."""


def _names_of(file: Path) -> set[str]:
    """What a Python file defines and imports at its top."""
    found = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        match node:
            case ast.FunctionDef() | ast.ClassDef():
                found.add(node.name)
            case ast.Import() | ast.ImportFrom():
                found |= {alias.asname or alias.name for alias in node.names}
            case ast.Assign() | ast.AnnAssign():
                found |= {name.id for name in ast.walk(node) if isinstance(name, ast.Name)}
    return found


RESERVED = frozenset({*_names_of(Path(__file__).with_name("runtime.py")), *dir(builtins)}) | {
    *("argparse", "os", "cache", "run", "main", "_"),
}
"""What the file calls something else."""


def arguments(values: Mapping[str, str]) -> list[str]:
    """Sources of arguments by name; words of Python's own, which cannot stand before a `=`, go in a mapping."""
    plain = [f"{name}={source}" for name, source in values.items() if not keyword.iskeyword(name)]
    odd = [f"{name!r}: {source}" for name, source in values.items() if keyword.iskeyword(name)]
    return [*plain, "**{" + ", ".join(odd) + "}"] if odd else plain


class _Other(Exception):
    """Not the same in Python."""


def variable(name: str) -> str:
    """What a variable of the spec is called in the file."""
    taken = name in RESERVED or keyword.iskeyword(name) or name.startswith(("ask_", "use_", "index_"))
    return f"{name}_" if taken else name


def python(value: Any) -> str:
    """Source of a value of the spec: expressions inside are evaluated. Raises UsageError for what only mmc can tell."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key!r}: {python(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(python, value)) + "]"
    if not isinstance(value, str) or "{" not in value:
        return repr(value)
    tree = _ENVIRONMENT.parse(value)
    for found in (*tree.find_all(nodes.Test), *tree.find_all(nodes.Filter)):
        if found.name in ("defined", "undefined", "default", "d"):
            raise UsageError(f"{value}: whether a variable is set cannot be told in Python; set it before")
    return _whole(value) or _text(value, tree)


def condition(value: str) -> str:
    """Source of a condition: what is no truth value by itself is asked for its truth as mmc does."""
    source = python(value)
    whole = _WHOLE.match(value)
    tree = _ENVIRONMENT.parse("{{" + whole[1] + "}}").body if whole else []
    only = (
        tree[0].nodes[0] if len(tree) == 1 and isinstance(tree[0], nodes.Output) and len(tree[0].nodes) == 1 else None
    )
    return source if isinstance(only, nodes.Compare | nodes.Not) else f"true({source})"


def _whole(value: str) -> str | None:
    """Source of a value that is one expression; None when it is text with expressions in it."""
    whole = _WHOLE.match(value)
    if whole is None:
        return None
    inner = whole[1].strip()
    try:
        _ENVIRONMENT.compile_expression(inner)
    except TemplateSyntaxError:
        return None
    output = _ENVIRONMENT.parse("{{ " + inner + " }}").body[0]
    assert isinstance(output, nodes.Output)
    try:
        return _expression(output.nodes[0])
    except _Other:
        return _call("jinja", inner, value)


def _text(value: str, tree: nodes.Template) -> str:
    """Source of a text with expressions in it: an f-string, where these are simple."""
    parts = []
    try:
        for output in tree.body:
            if not isinstance(output, nodes.Output) or "\n" in value:
                raise _Other
            for node in output.nodes:
                if isinstance(node, nodes.TemplateData):
                    parts.append(repr(node.data)[1:-1].replace("{", "{{").replace("}", "}}"))
                    if "'" in node.data or '"' in node.data:
                        raise _Other
                else:
                    source = _expression(node)
                    if '"' in source or "\\" in source:
                        raise _Other
                    parts.append("{" + source.replace("'", '"') + "}")
    except _Other:
        return _call("interpolated", value, value)
    inner = "".join(parts)
    return f"f'{inner}'" if "\\" not in inner else _call("interpolated", value, value)


def _call(function: str, text: str, value: str) -> str:
    """A call of the file's own function, with the variables that the text uses."""
    return f"{function}({', '.join([repr(text), *arguments({n: variable(n) for n in sorted(names_in(value))})])})"


def _expression(node: nodes.Node) -> str:
    """Source of an expression. Raises _Other where Python means something else, or might."""
    match node:
        case nodes.Const():
            return repr(node.value)
        case nodes.Name():
            return variable(node.name)
        case nodes.Getattr() if node.attr not in _DICT and isinstance(node.node, nodes.Name):
            return f"{_expression(node.node)}[{node.attr!r}]"
        case nodes.Getitem(arg=nodes.Slice()):
            assert isinstance(node.arg, nodes.Slice)
            bounds = (node.arg.start, node.arg.stop)
            start, stop = ("" if bound is None else _expression(bound) for bound in bounds)
            if node.arg.step is not None:
                raise _Other
            return f"{_operand(node.node)}[{start}:{stop}]"
        case nodes.Getitem(arg=nodes.Name() | nodes.Const()):
            return f"{_operand(node.node)}[{_expression(node.arg)}]"
        case nodes.List():
            return "[" + ", ".join(map(_expression, node.items)) + "]"
        case nodes.Add() | nodes.Sub():
            sign = "+" if isinstance(node, nodes.Add) else "-"
            return f"{_operand(node.left)} {sign} {_operand(node.right)}"
        case nodes.Not():
            return f"not {_operand(node.node)}"
        case nodes.And() | nodes.Or():
            word = "and" if isinstance(node, nodes.And) else "or"
            return f"{_operand(node.left)} {word} {_operand(node.right)}"
        case nodes.Compare(ops=[nodes.Operand() as one]):
            return f"{_operand(node.expr)} {_COMPARED[one.op]} {_operand(one.expr)}"
        case nodes.Call(node=nodes.Name(name="range")) if not (node.kwargs or node.dyn_args or node.dyn_kwargs):
            return f"list(range({', '.join(map(_expression, node.args))}))"
    raise _Other


def _operand(node: nodes.Node) -> str:
    """An expression as a part of another."""
    source = _expression(node)
    simple = isinstance(node, nodes.Name | nodes.Const | nodes.Getattr | nodes.Getitem | nodes.List | nodes.Call)
    return source if simple else f"({source})"
