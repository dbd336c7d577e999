"""Expressions in a spec: Jinja in double braces, in the same sandbox as the templates; compiled once a program."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from types import GeneratorType
from typing import Any

import jinja2
from jinja2 import meta, nodes

from mmc.errors import RunFailure
from mmc.prompt import environment

Variables = Mapping[str, Any]
Expression = Callable[[Variables], Any]
_ENVIRONMENT = environment()
_WHOLE = re.compile(r"^\s*\{\{(.*)\}\}\s*$", re.DOTALL)


def compile_value(value: Any) -> Expression:
    """A function of the variables. One that is a single ``{{ ... }}`` keeps its type; other texts are interpolated.

    Lists and mappings are compiled inside. Raises jinja2.TemplateSyntaxError.
    """
    if isinstance(value, Mapping):
        parts = {key: compile_value(item) for key, item in value.items()}
        return lambda variables: {key: part(variables) for key, part in parts.items()}
    if isinstance(value, list | tuple):
        items = [compile_value(item) for item in value]
        return lambda variables: [item(variables) for item in items]
    if isinstance(value, str) and "{" in value:
        return _compile_text(value)
    return lambda variables: value


def _compile_text(text: str) -> Expression:
    whole = _WHOLE.match(text)
    if whole:
        try:
            expression = _ENVIRONMENT.compile_expression(whole[1].strip(), undefined_to_none=False)
        except jinja2.TemplateSyntaxError:
            pass  # such as "{{ a }} {{ b }}": not one expression but text between two
        else:
            return lambda variables: _evaluate(lambda: expression(**variables), text)
    template = _ENVIRONMENT.from_string(text)
    return lambda variables: _evaluate(lambda: template.render(**variables), text)


def _evaluate(work: Callable[[], Any], text: str) -> Any:
    try:
        value = work()
        if isinstance(value, jinja2.Undefined):
            value._fail_with_undefined_error()
        return list(value) if isinstance(value, GeneratorType | map | filter | range) else value
    except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
        raise RunFailure(f"{text.strip()}: {error}") from error


def names_in(value: Any) -> set[str]:
    """The variables an expression (or the texts inside a list or mapping) uses. Raises jinja2.TemplateSyntaxError."""
    if isinstance(value, Mapping):
        return set().union(*(names_in(item) for item in value.values()))
    if isinstance(value, list | tuple):
        return set().union(*(names_in(item) for item in value))
    if isinstance(value, str) and "{" in value:
        return meta.find_undeclared_variables(_ENVIRONMENT.parse(value)) - set(_ENVIRONMENT.globals)
    return set()


def attributes_in(value: Any) -> set[tuple[str, str]]:
    """What an expression takes from variables: (variable, attribute), as in ``{{ hits.title }}``; nothing where it is invalid."""
    if isinstance(value, Mapping):
        return set().union(*(attributes_in(item) for item in value.values()))
    if isinstance(value, list | tuple):
        return set().union(*(attributes_in(item) for item in value))
    if not isinstance(value, str) or "{" not in value:
        return set()
    try:
        tree = _ENVIRONMENT.parse(value)
    except jinja2.TemplateSyntaxError:
        return set()
    found = tree.find_all(nodes.Getattr)
    return {(node.node.name, node.attr) for node in found if isinstance(node.node, nodes.Name)}
