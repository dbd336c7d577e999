"""mmc check: every static problem of a spec."""

from __future__ import annotations

import sys

import typer

from mmc.cli.common import SetOption, SpecArgument


def check_command(spec: SpecArgument, set_: SetOption = []) -> None:  # noqa: B006  typer copies it
    """Check a spec, its templates and its data files; say every problem at once."""
    from mmc.program.check import check
    from mmc.spec import load

    loaded = load(spec, set_)
    found = check(loaded)
    for problem in found:
        print(problem.render(), file=sys.stderr)
    errors = sum(p.severity == "error" for p in found)
    if errors:
        print(f"{errors} error{'s' if errors > 1 else ''}", file=sys.stderr)
        raise typer.Exit(3)
    counts = f"{len(loaded.spec.modules)} modules, {len(loaded.spec.tools)} tools"
    print(f"{spec}: ok ({counts})")
