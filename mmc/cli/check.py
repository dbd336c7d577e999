"""mmc check: every static problem of a spec."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from mmc.cli.common import SetOption, SpecArgument, counted

if TYPE_CHECKING:
    from mmc.errors import Diagnostic


def check_command(
    spec: SpecArgument,
    format_: Annotated[
        Literal["text", "github"],
        typer.Option("--format", help="text for people; github marks lines in a pull request."),
    ] = "text",
    set_: SetOption = [],  # noqa: B006  typer copies it
) -> None:
    """Say every problem of a spec, its templates and its data.

    Each with file, line and column, and what to do; all at once.
    """
    from mmc.errors import InvalidError
    from mmc.program.check import check, untunable
    from mmc.spec.load import survey

    try:
        loaded, shape = survey(spec, set_)
    except InvalidError as error:
        if not error.diagnostics[0].file:
            raise
        loaded, shape = None, error.diagnostics
    found = set(shape)
    if loaded is not None:
        found.update(check(loaded))
        if "compile" in loaded.spec.model_fields_set and all(problem.severity == "warning" for problem in found):
            found.update(untunable(loaded))
    _print(sorted(found), format_)
    errors = [problem for problem in found if problem.severity == "error"]
    if errors:
        print(counted(len(errors), "error"), file=sys.stderr)
        raise typer.Exit(4 if all(problem.cause == "environment" for problem in errors) else 3)
    assert loaded is not None
    print(f"{spec}: ok ({counted(len(loaded.spec.modules), 'module')}, {counted(len(loaded.spec.tools), 'tool')})")


def _print(found: Sequence[Diagnostic], format_: str) -> None:
    for problem in found:
        if format_ == "github":
            # The workflow's own output, relative to where it runs.
            print(replace(problem, file=os.path.relpath(problem.file)).github())
        else:
            print(problem.render(), file=sys.stderr)
