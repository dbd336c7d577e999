"""mmc plan: what a compile would do and cost."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mmc.cli.common import JsonOption, SetOption, SpecArgument, TrustOption, print_json, warn
from mmc.cli.progress import duration

if TYPE_CHECKING:
    from mmc.compile.plan import Plan, Range


def plan_command(
    spec: SpecArgument,
    out: Annotated[Path, typer.Option(help="As for compile.")] = Path("build"),
    runs: Annotated[Path, typer.Option(help="As for compile.")] = Path(".mmc/runs"),
    detailed_exitcode: Annotated[
        bool, typer.Option("--detailed-exitcode", help="Exit with 10 when there is something to do.")
    ] = False,
    json_: JsonOption = False,
    set_: SetOption = [],  # noqa: B006
    trust: TrustOption = False,
) -> None:
    """Say what a compile would do, why, and what it costs.

    Stages done, stale or to do, with runs, calls, tokens, dollars and time, and what these rest on.
    """
    from mmc.compile import CompileJob
    from mmc.compile.plan import make_plan
    from mmc.spec import load

    loaded = load(spec, set_)
    warn(loaded)
    plan = make_plan(CompileJob(loaded, out, runs, trust))
    if json_:
        print_json({**asdict(plan), "work": plan.work})
    else:
        _print(plan)
    if detailed_exitcode and plan.work:
        raise typer.Exit(10)


def _print(plan: Plan) -> None:
    head = ("stage", "status", "runs", "calls", "tokens", "dollars", "time")
    rows: list[tuple[str, ...]] = [head]
    for stage in plan.stages:
        left = stage.status != "done"
        dollars = "unknown" if stage.dollars is None else _range(stage.dollars, "$%.2f")
        seconds = "unknown" if stage.seconds is None else _time(stage.seconds)
        cells = [_range(stage.runs), _range(stage.calls), _range(stage.tokens), dollars, seconds] if left else [""] * 5
        rows.append((stage.stage, stage.status, *cells))
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    for row, why in zip(rows, ["", *(stage.why for stage in plan.stages)], strict=True):
        print("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())
        if why:
            print(f"    {why}")
    print()
    for line in plan.rests_on:
        print(line)
    print(f"run folder: {plan.folder}")


def _range(found: Range, form: str = "") -> str:
    low, high = ((form % value if form else _short(value)) for value in (found.low, found.high))
    return low if low == high else f"{low} to {high}"


def _short(value: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if value >= size:
            return f"{value / (1e3 if letter == 'k' else size):,.3g}{letter}"
    return f"{value:,.0f}"


def _time(found: Range) -> str:
    low, high = duration(found.low), duration(found.high)
    return low if low == high else f"{low} to {high}"
