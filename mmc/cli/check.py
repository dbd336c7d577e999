"""mmc check: every static problem of a spec."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from mmc.cli.common import SetOption, SpecArgument

if TYPE_CHECKING:
    from mmc.errors import Diagnostic


def check_command(
    spec: SpecArgument,
    format_: Annotated[
        Literal["text", "github"], typer.Option("--format", help="github: marks lines in a pull request.")
    ] = "text",
    set_: SetOption = [],  # noqa: B006  typer copies it
) -> None:
    """Check a spec, its templates and its data files; say every problem at once."""
    from mmc.errors import InvalidError
    from mmc.program.check import check
    from mmc.spec import load

    try:
        loaded = load(spec, set_)
    except InvalidError as error:
        if format_ == "text" or not error.diagnostics[0].file:
            raise
        _print(error.diagnostics, format_)
        raise typer.Exit(3) from None
    found = check(loaded)
    _print(found, format_)
    errors = sum(p.severity == "error" for p in found)
    if errors:
        print(f"{errors} error{'s' if errors > 1 else ''}", file=sys.stderr)
        raise typer.Exit(3)
    counts = f"{len(loaded.spec.modules)} modules, {len(loaded.spec.tools)} tools"
    print(f"{spec}: ok ({counts})")


def _print(found: tuple[Diagnostic, ...], format_: str) -> None:
    for problem in found:
        if format_ == "github":
            # The workflow's own output, relative to where it runs.
            print(replace(problem, file=os.path.relpath(problem.file)).github())
        else:
            print(problem.render(), file=sys.stderr)
