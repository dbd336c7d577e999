"""mmc render: the exact messages a module sends."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from mmc.cli.common import InputOption, SetOption, SpecArgument, TrustOption, read_inputs, split_name
from mmc.errors import UsageError


def render_command(
    spec: SpecArgument,
    module: Annotated[str | None, typer.Option(help="Only this module.")] = None,
    example: Annotated[str | None, typer.Option(help="Id of the example; the first when left out.")] = None,
    split: Annotated[str, typer.Option(help="Split the example is taken from.")] = "dev",
    input_: InputOption = [],  # noqa: B006
    set_: SetOption = [],  # noqa: B006
    trust: TrustOption = False,
) -> None:
    """Print the messages of every module whose inputs are known from an example and --input."""
    from mmc.program.graph import Program
    from mmc.spec import load

    program = Program.build(load(spec, set_), trust)
    if module is not None and module not in program.spec.modules:
        raise UsageError(f"there is no module {module!r}; there are {', '.join(program.spec.modules)}")
    texts = frozenset(n for m in program.spec.modules.values() for n, kind in m.inputs.items() if kind == "str")
    known = {**_row(program, split, example), **read_inputs(input_, texts)}
    for name in [module] if module else program.spec.modules:
        _print_module(program, name, known, asked=module is not None)


def _row(program: Any, split: str, example: str | None) -> dict[str, Any]:
    from mmc.data import load_split

    if program.spec.data is None:
        return {}
    rows = load_split(program.loaded, split_name(split))
    if example is None:
        return dict(rows[0].row)
    found = next((e for e in rows if e.id == example), None)
    if found is None:
        raise UsageError(f"--example {example}: the {split} split has no such id; its first is {rows[0].id}")
    return dict(found.row)


def _print_module(program: Any, name: str, known: dict[str, Any], asked: bool) -> None:
    inputs = program.spec.modules[name].inputs
    missing = [key for key in inputs if key not in known]
    if missing:
        text = f"{name}: needs {', '.join(missing)}, made by earlier steps; give --input {missing[0]}=..."
        if asked:
            raise UsageError(text)
        print(f"== {text}\n")
        return
    variables = program.prompt_variables(name, {key: known[key] for key in inputs})
    print(f"== {name} ({program.templates[name].path})")
    for message in program.templates[name].render(variables):
        print(f"[{message.role}]\n{message.content}\n")
