"""mmc run: one run of a program."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer

from mmc.cli.common import InputOption, SetOption, SpecArgument, TrustOption, print_json, read_inputs
from mmc.errors import UsageError


def run_command(
    spec: SpecArgument,
    input_: InputOption = [],  # noqa: B006
    trace: Annotated[bool, typer.Option("--trace", help="Print every call and tool use on stderr.")] = False,
    json_: Annotated[
        bool, typer.Option("--json", help="Print the outputs and every call and tool use as one JSON object on stdout.")
    ] = False,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 is greedy.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Seed of the draws when not greedy.")] = 0,
    set_: SetOption = [],  # noqa: B006
    trust: TrustOption = False,
) -> None:
    """Run a program once and print its outputs as JSON."""
    from mmc.data import Example
    from mmc.engine import open_engines
    from mmc.program.confidence import confidence, silent
    from mmc.program.graph import Program
    from mmc.program.run import RunSettings, run_all
    from mmc.spec import load

    program = Program.build(load(spec, set_), trust)
    wanted = program.spec.program.inputs
    inputs = read_inputs(input_, frozenset(name for name, kind in wanted.items() if kind == "str"))
    missing, unknown = [n for n in wanted if n not in inputs], [n for n in inputs if n not in wanted]
    if missing or unknown:
        problem = f"missing: {', '.join(missing)}" if missing else f"unknown: {', '.join(unknown)}"
        raise UsageError(
            f"the program's inputs are {', '.join(wanted)}; {problem}. Write --input {next(iter(wanted))}=..."
        )
    engines = open_engines(program.loaded)
    settings = RunSettings("run", 0, seed, temperature, score=False)
    trajectory = run_all(program, engines, [Example("run", inputs)], settings)[0]
    for line in silent(program.spec, confidence(program.spec, trajectory.calls)):
        print(f"note: {line}", file=sys.stderr)
    if trace or json_:
        from mmc.compile.state import trace as plain

        if trace:
            print(json.dumps(plain(trajectory), indent=2, ensure_ascii=False, default=str), file=sys.stderr)
        if json_:
            print_json(plain(trajectory))
    if trajectory.ending != "done":
        print(f"error: the run was interrupted ({trajectory.ending}): {trajectory.error}", file=sys.stderr)
        raise typer.Exit(1)
    if not json_:
        print_json(trajectory.outputs)
