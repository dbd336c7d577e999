"""mmc compile: make a program better."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mmc.cli.common import JsonOption, SetOption, SpecArgument, TrustOption, print_json

if TYPE_CHECKING:
    from mmc.compile import CompileResult
    from mmc.spec import LoadedSpec


def compile_command(
    spec: SpecArgument,
    out: Annotated[Path, typer.Option(help="Builds are written below this folder.")] = Path("build"),
    runs: Annotated[Path, typer.Option(help="What is needed to resume is kept below this folder.")] = Path(".mmc/runs"),
    json_: JsonOption = False,
    set_: SetOption = [],  # noqa: B006
    trust: TrustOption = False,
) -> None:
    """Search prompts and train weights as the spec says; write a build. Run it again to resume."""
    from mmc.cli.progress import make_progress
    from mmc.compile import CompileJob, compile_spec
    from mmc.spec import load

    loaded = load(spec, set_)
    with make_progress() as progress:
        result = compile_spec(CompileJob(loaded, out, runs, trust, progress))
    if json_:
        keys = ("stage", "split", "score", "low", "high", "n")
        stages = [{key: getattr(stage, key) for key in keys} for stage in result.stages]
        print_json({"build": str(result.build), "stages": stages})
        return
    _print_table(result)
    _print_next(result, loaded)


def _print_table(result: CompileResult) -> None:
    width = max(len(stage.stage) for stage in result.stages)
    n = result.stages[0].n
    print(f"\nheld-out scores ({n} test examples, 95% intervals)")
    for stage in result.stages:
        what = "start" if stage.stage == "start" else f"after {stage.stage}"
        print(f"  {what:<{width + 6}}  {stage.score:.3f}  [{stage.low:.3f}, {stage.high:.3f}]  {stage.note}")


def _print_next(result: CompileResult, loaded: LoadedSpec) -> None:
    from mmc.data import load_split

    build = Path(os.path.relpath(result.build))
    row = load_split(loaded, "test")[0].row
    inputs = " ".join(f"--input {shlex.quote(f'{name}={row[name]}')}" for name in loaded.spec.program.inputs)
    print(f"\nbuild:  {build}\nreport: {build / 'report.html'}\nrun it: mmc run {build} {inputs}")
