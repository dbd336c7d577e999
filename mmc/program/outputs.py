"""How a module's outputs stand in a completion: reading them, writing them, and the constraint that makes them readable."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from mmc.engine.base import Choice, Constraint, JsonSchema, Regex
from mmc.errors import InvalidError, ParseError, RunFailure
from mmc.program.expression import Expression, compile_value
from mmc.spec.load import LoadedSpec
from mmc.spec.model import EnumType, Module, OutputType
from mmc.spec.types import Type, coerce, json_schema_of, parse_type

Options = Mapping[str, tuple[str, ...]]
Format = Literal["text", "sections", "json"]
_MEMBER = re.compile(r'\s*[{,]\s*("(?:[^"\\]|\\.)*")\s*:\s*')
_PATTERNS = {"int": r"-?[0-9]{1,15}", "float": r"-?[0-9]{1,15}(\.[0-9]{1,15})?", "bool": r"(true|false)"}


def format_of(module: Module) -> Format:
    """The module's format with ``auto`` resolved."""
    if module.format != "auto":
        return module.format
    if len(module.outputs) > 1:
        return "json"
    only = next(iter(module.outputs.values()))
    simple = isinstance(only, EnumType) or (
        isinstance(only, str) and parse_type(only).kind in ("str", "int", "float", "bool")
    )
    return "text" if simple else "json"


@dataclass(frozen=True)
class Outputs:
    """Reads and writes the outputs of one module."""

    loaded: LoadedSpec
    name: str

    @property
    def module(self) -> Module:
        return self.loaded.spec.modules[self.name]

    @cached_property
    def format(self) -> Format:
        return format_of(self.module)

    @cached_property
    def _sources(self) -> dict[str, Expression]:
        """For every enum output, a function of the module's inputs that gives its options."""
        return {n: self._options_of(n, t) for n, t in self.module.outputs.items() if isinstance(t, EnumType)}

    def _options_of(self, name: str, declared: EnumType) -> Expression:
        if isinstance(declared.enum, list):
            fixed = declared.enum
            return lambda inputs: fixed
        if "{{" in declared.enum:
            return compile_value(declared.enum)
        fixed = enum_file(self.loaded, ("modules", self.name, "outputs", name, "enum"), declared.enum)
        return lambda inputs: fixed

    def options(self, inputs: Mapping[str, Any]) -> Options:
        """The options of every enum output. Raises RunFailure when an expression gives none."""
        found = {}
        for name, source in self._sources.items():
            values = source(inputs)
            if not isinstance(values, list | tuple) or not values:
                raise RunFailure(f"{self.name}.{name} has no options to choose from")
            found[name] = tuple(dict.fromkeys(str(v) for v in values))
        return found

    # --- the constraint ---

    def constraint(self, options: Options) -> Constraint | None:
        """What decoding must follow, None when the module does not ask for it or anything can be read."""
        if not self.module.constrain:
            return None
        if self.format == "text":
            name, declared = next(iter(self.module.outputs.items()))
            if isinstance(declared, EnumType):
                return Choice(options[name])
            kind = parse_type(str(declared)).kind
            if kind == "bool":
                return Choice(("true", "false"))
            return Regex(_PATTERNS[kind]) if kind in _PATTERNS else None
        if self.format == "sections":
            lines = (f"{re.escape(n)}: {self._pattern(n, t, options)}" for n, t in self.module.outputs.items())
            return Regex("\n".join(lines))
        return JsonSchema(json.dumps(self.schema(options)))

    def _pattern(self, name: str, declared: OutputType, options: Options) -> str:
        if isinstance(declared, EnumType):
            return "(" + "|".join(map(re.escape, options[name])) + ")"
        kind = parse_type(declared).kind if isinstance(declared, str) else "object"
        return _PATTERNS.get(kind, r"[^\n]+")

    def schema(self, options: Options) -> dict[str, Any]:
        """The JSON schema of the outputs."""
        properties = {n: self.schema_of(n, options) for n in self.module.outputs}
        return _object(properties)

    def schema_of(self, name: str, options: Options) -> dict[str, Any]:
        """The JSON schema of one output; a text where an enum's options are not known."""
        declared = self.module.outputs[name]
        if isinstance(declared, EnumType):
            return {"enum": list(options[name])} if name in options else {"type": "string"}
        if isinstance(declared, str):
            return json_schema_of(parse_type(declared))
        return _object({key: json_schema_of(parse_type(kind)) for key, kind in declared.items()})

    # --- reading ---

    def parse(self, text: str, options: Options) -> dict[str, Any]:
        """The outputs in a completion. Raises ParseError with the fields that could be read."""
        raw, problems = self._fields(text)
        values: dict[str, Any] = {}
        for name, declared in self.module.outputs.items():
            if name not in raw:
                problems.append(f"{name} is missing")
                continue
            try:
                values[name] = _value(raw[name], declared, options.get(name, ()))
            except ValueError as error:
                problems.append(f"{name}: {error}")
        if problems:
            raise ParseError("; ".join(problems), values)
        return values

    def _fields(self, text: str) -> tuple[dict[str, Any], list[str]]:
        """What stands under each name, and what is wrong with the text as a whole."""
        if self.format == "text":
            return {next(iter(self.module.outputs)): text.strip()}, []
        if self.format == "sections":
            return self._sections(text), []
        start = text.find("{")
        if start < 0:
            return {}, []
        try:
            found, _ = json.JSONDecoder().raw_decode(text, start)
        except ValueError as error:
            return _members(text, start), [f"not valid JSON: {error}"]
        return found, []

    def _sections(self, text: str) -> dict[str, Any]:
        names = "|".join(map(re.escape, self.module.outputs))
        marks = list(re.finditer(rf"^[ \t]*({names})[ \t]*:[ \t]*", text, re.MULTILINE))
        ends = [m.start() for m in marks[1:]] + [len(text)]
        found: dict[str, Any] = {}
        for mark, end in zip(marks, ends, strict=True):
            found.setdefault(mark[1], _listed(text[mark.end() : end].strip(), self.module.outputs[mark[1]]))
        return found

    # --- writing ---

    def answer(self, outputs: Mapping[str, Any]) -> str:
        """The completion from which :meth:`parse` reads ``outputs``."""
        if self.format == "text":
            return _written(outputs[next(iter(self.module.outputs))])
        if self.format == "sections":
            return "\n".join(f"{name}: {_written(outputs[name])}" for name in self.module.outputs)
        return json.dumps({name: outputs[name] for name in self.module.outputs}, ensure_ascii=False)


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def _members(text: str, position: int) -> dict[str, Any]:
    """The members that stand whole at the beginning of a JSON object that is cut or broken after them."""
    found: dict[str, Any] = {}
    while match := _MEMBER.match(text, position):
        try:
            value, position = json.JSONDecoder().raw_decode(text, match.end())
            if text[position:].lstrip()[:1] not in (",", "}"):
                break  # a number may go on
            found[json.loads(match[1])] = value
        except ValueError:
            break
    return found


def enum_file(loaded: LoadedSpec, path: tuple[str | int, ...], name: str) -> list[str]:
    """The options in an enum's file. Raises InvalidError when it holds none."""
    try:
        values = json.loads(loaded.resolve(name).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InvalidError([loaded.diagnostic(path, f"{name}: there is no such file")]) from None
    except (OSError, ValueError) as error:
        raise InvalidError([loaded.diagnostic(path, f"{name}: the enum's file cannot be read: {error}")]) from None
    if not isinstance(values, list) or not values or not all(isinstance(v, str) for v in values):
        raise InvalidError([loaded.diagnostic(path, f"{name} must hold a JSON list of texts")])
    return values


def _value(raw: Any, declared: OutputType, options: tuple[str, ...]) -> Any:
    if isinstance(declared, EnumType):
        known = {option.strip().lower(): option for option in options}
        text = str(raw).strip()
        if text in options:
            return text
        if text.lower() in known:
            return known[text.lower()]
        raise ValueError(f"{text[:60]!r} is none of the {len(options)} options")
    if isinstance(declared, str):
        return coerce(raw, parse_type(declared))
    if not isinstance(raw, dict) or set(raw) != set(declared):
        raise ValueError(f"expected an object with {', '.join(declared)}")
    return {key: coerce(raw[key], parse_type(kind)) for key, kind in declared.items()}


def _listed(text: str, declared: OutputType) -> Any:
    """A list in a section: one JSON list, or a line an item; an object: JSON."""
    wanted: Type | None = parse_type(declared) if isinstance(declared, str) else None
    if isinstance(declared, EnumType) or (wanted is not None and wanted.kind not in ("list", "object", "any")):
        return text
    try:
        return json.loads(text)
    except ValueError:
        items = [line.strip().removeprefix("- ").strip() for line in text.splitlines()]
        return [item for item in items if item] if wanted is not None and wanted.kind == "list" else text


def _written(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
