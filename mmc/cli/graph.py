"""mmc graph: the steps of a program, as a tree, as a Mermaid flowchart or as data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

import typer

from mmc.cli.common import SetOption, SpecArgument, print_json


def graph_command(
    spec: SpecArgument,
    format_: Annotated[
        Literal["tree", "mermaid", "json"], typer.Option("--format", help="tree, mermaid (for Markdown) or json.")
    ] = "tree",
    set_: SetOption = [],  # noqa: B006
) -> None:
    """Print the program's steps."""
    from mmc.program.flowchart import mermaid
    from mmc.spec import load

    loaded = load(spec, set_).spec
    program = loaded.program
    if format_ == "json":
        print_json(program.model_dump(mode="json", by_alias=True, exclude_defaults=True))
        return
    if format_ == "mermaid":
        print(mermaid(loaded))
        return
    print(f"inputs: {', '.join(program.inputs) or 'none'}")
    for line in _lines(program.steps, "  "):
        print(line)
    print(f"outputs: {', '.join(program.outputs) or 'by return'}")


def _lines(steps: Sequence[Any], indent: str) -> Iterator[str]:
    from mmc.spec import model

    for step in steps:
        match step:
            case model.CallStep():
                yield f"{indent}call {step.call}" + (f" as {step.as_}" if step.as_ else "")
            case model.ToolStep():
                yield f"{indent}tool {step.tool}" + (f" as {step.as_}" if step.as_ else "")
            case model.SetStep():
                yield f"{indent}set {', '.join(step.set)}"
            case model.IfStep():
                yield f"{indent}if {step.if_}"
                yield from _lines(step.steps, indent + "  ")
                if step.else_:
                    yield f"{indent}else"
                    yield from _lines(step.else_, indent + "  ")
            case model.RepeatStep():
                yield f"{indent}repeat up to {step.repeat}" + (f" until {step.until}" if step.until else "")
                yield from _lines(step.steps, indent + "  ")
            case model.ForStep():
                name, items = next(iter(step.for_.items()))
                yield f"{indent}for {name} in {items}"
                yield from _lines(step.steps, indent + "  ")
            case model.ParallelStep():
                for i, branch in enumerate(step.parallel, 1):
                    yield f"{indent}parallel branch {i}"
                    yield from _lines(branch, indent + "  ")
            case model.ReturnStep():
                yield f"{indent}return {', '.join(step.return_)}"
