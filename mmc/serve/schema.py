"""The program's inputs and outputs, typed: for reading requests and for the OpenAPI document."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict

from mmc.program.graph import Program
from mmc.program.steps import returns, walk
from mmc.serve.problem import invalid, located
from mmc.spec.model import CallStep, EnumType, ForStep, SetStep, ToolStep
from mmc.spec.types import Type, parse_type

_FIELD = re.compile(r"^\s*\{\{\s*(\w+)\.(\w+)\s*\}\}\s*$")
"""An expression that is one output of one module."""
_TYPES: Mapping[str, Any] = {
    "str": str, "int": int, "float": float, "bool": bool, "object": dict[str, Any], "any": Any,
}  # fmt: skip


class Inputs:
    """Reads the inputs of a program."""

    def __init__(self, program: Program) -> None:
        kinds = program.spec.program.inputs
        fields = {name: _python(parse_type(kind)) for name, kind in kinds.items()}
        self._reader: TypeAdapter[dict[str, Any]] = TypeAdapter(
            with_config(ConfigDict(extra="forbid"))(TypedDict("Inputs", fields))  # type: ignore[operator]
        )
        self.text = next(iter(kinds)) if list(kinds.values()) == ["str"] else None
        """The only input where that is a text."""

    def read(self, body: bytes | str) -> dict[str, Any]:
        """The inputs in a JSON document. Raises Problem naming every field that is wrong."""
        try:
            return self._reader.validate_json(body)
        except ValidationError as error:
            raise invalid(located(error.errors())) from None

    def schema(self) -> dict[str, Any]:
        return self._reader.json_schema()


def _python(kind: Type) -> Any:
    return list[_python(kind.item)] if kind.item is not None else _TYPES[kind.kind]  # type: ignore[misc]


def outputs_schema(program: Program) -> dict[str, Any]:
    """JSON schema of a run's outputs; anything where only the run can tell the type."""
    declared = program.spec.program
    properties: dict[str, Any] = {name: _schema(program, value) for name, value in declared.outputs.items()}
    returned = returns(declared.steps)
    for names in returned:
        properties |= {name: {} for name in names}
    required = [name for name in properties if not returned]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _schema(program: Program, value: Any) -> dict[str, Any]:
    found = _FIELD.match(value) if isinstance(value, str) else None
    module = _made_by(program, found[1]) if found is not None else None
    if found is None or module is None or found[2] not in program.spec.modules[module].outputs:
        return {}
    outputs = program.spec.modules[module].outputs
    fixed = {n: tuple(t.enum) for n, t in outputs.items() if isinstance(t, EnumType) and isinstance(t.enum, list)}
    return program.readers[module].schema_of(found[2], fixed)


def _made_by(program: Program, variable: str) -> str | None:
    """The module whose outputs a variable holds; None when it may hold something else."""
    makers: set[str | None] = set()
    for step in walk(program.spec.program.steps):
        match step:
            case CallStep() if (step.as_ or step.call) == variable:
                makers.add(step.call)
            case ToolStep() if (step.as_ or step.tool) == variable:
                makers.add(None)
            case SetStep() if variable in step.set:
                makers.add(None)
            case ForStep() if variable in step.for_:
                makers.add(None)
    return makers.pop() if len(makers) == 1 else None
