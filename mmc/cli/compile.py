"""mmc compile: make a program better."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mmc.cli.common import JsonOption, SetOption, SpecArgument, TrustOption, print_json, warn
from mmc.errors import UsageError

if TYPE_CHECKING:
    from mmc.compile import CompileResult, Matrix
    from mmc.spec import LoadedSpec


def compile_command(
    spec: SpecArgument,
    out: Annotated[Path, typer.Option(help="Builds are written below this folder.")] = Path("build"),
    runs: Annotated[Path, typer.Option(help="What is needed to resume is kept below this folder.")] = Path(".mmc/runs"),
    matrix: Annotated[
        bool, typer.Option("--matrix", help="Compare the start, prompts alone, weights alone and both; no build.")
    ] = False,
    seeds: Annotated[int, typer.Option(min=1, help="With --matrix: how many seeds, from the spec's on.")] = 1,
    track: Annotated[
        list[str],
        typer.Option(
            metavar="NAME[:WHERE]",
            help="Send curves and scores there too: tensorboard[:FOLDER], trackio[:SPACE], wandb[:PROJECT], mlflow[:URI]; "
            "may be repeated.",
            autocompletion=complete_tracker,
        ),
    ] = [],  # noqa: B006
    cluster: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS", help="Run and train on Ray workers: `local`, `auto`, or HOST:PORT of a cluster."
        ),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="With --cluster: how many; as many as there is room for when left out.")
    ] = None,
    json_: JsonOption = False,
    set_: SetOption = [],  # noqa: B006
    trust: TrustOption = False,
) -> None:
    """Search prompts and train weights; write a build.

    As the spec says under `compile`. Interrupted, the same command goes on where it was.
    """
    from mmc.cli.progress import make_progress
    from mmc.cluster import connected
    from mmc.compile import CompileJob, compile_spec, run_matrix
    from mmc.spec import load
    from mmc.track import wanted

    if seeds > 1 and not matrix:
        raise UsageError("--seeds does nothing without --matrix")
    if workers is not None and cluster is None:
        raise UsageError("--workers does nothing without --cluster")
    trackers = [wanted(one) for one in track]
    loaded = load(spec, set_)
    warn(loaded)
    place = loaded.spec.cluster.model_copy(update={"workers": workers or loaded.spec.cluster.workers})
    with connected(cluster, place) as there, make_progress() as progress:
        job = CompileJob(loaded, out, runs, trust, progress, trackers, there)
        if matrix:
            first = loaded.spec.compile.seed
            found = run_matrix(job, range(first, first + seeds))
        else:
            result = compile_spec(job)
    if matrix:
        _print_matrix(found, out / found.name / "matrix.json", json_)
        return
    if json_:
        keys = ("stage", "split", "score", "low", "high", "n")
        stages = [{key: getattr(stage, key) for key in keys} for stage in result.stages]
        print_json({"build": str(result.build), "stages": stages})
        return
    _print_table(result)
    _print_next(result, loaded)


def complete_tracker(incomplete: str) -> list[str]:
    from mmc.track import TRACKERS

    return [name for name in TRACKERS if name.startswith(incomplete)]


def _print_table(result: CompileResult) -> None:
    width = max(len(stage.stage) for stage in result.stages)
    n = result.stages[0].n
    print(f"\nheld-out scores ({n} test examples, 95% intervals)")
    for stage in result.stages:
        what = "start" if stage.stage == "start" else f"after {stage.stage}"
        print(f"  {what:<{width + 6}}  {stage.score:.3f}  [{stage.low:.3f}, {stage.high:.3f}]  {stage.note}")


def _print_matrix(found: Matrix, file: Path, json_: bool) -> None:
    if json_:
        print(file.read_text(encoding="utf-8"), end="")
        return
    seeds = f"{len(found.seeds)} seed{'s' if len(found.seeds) > 1 else ''}"
    print(f"\nheld-out scores ({found.rows[0].score.n} test examples, {seeds}, 95% intervals)")
    for row in found.rows:
        score, gain = row.score, row.gain
        line = f"  {row.arm:<17}  {score.mean:.3f}  [{score.low:.3f}, {score.high:.3f}]"
        if row.arm != "start":
            line += f"  gain {gain.mean:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]"
        if len(found.seeds) > 1:
            line += f"  ({', '.join(f'{score:.3f}' for score in row.by_seed)})"
        print(line)
    print(f"\nin full: {file}")


def _print_next(result: CompileResult, loaded: LoadedSpec) -> None:
    from mmc.data import load_split

    build = Path(os.path.relpath(result.build))
    row = load_split(loaded, "test")[0].row
    inputs = " ".join(f"--input {shlex.quote(f'{name}={row[name]}')}" for name in loaded.spec.program.inputs)
    print(f"\nbuild:  {build}\nreport: {build / 'report.html'}\nrun it: mmc run {build} {inputs}")
