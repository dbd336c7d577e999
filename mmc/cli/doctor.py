"""mmc doctor: what this machine has, and what a spec would miss."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from mmc.cli.common import JsonOption, SetOption, complete_spec, print_json


def doctor_command(
    spec: Annotated[
        Path | None,
        typer.Argument(metavar="[SPEC]", help="Look for what this spec needs, too.", autocompletion=complete_spec),
    ] = None,
    json_: JsonOption = False,
    set_: SetOption = [],  # noqa: B006
) -> None:
    """Say what this machine has, and what a spec would miss.

    Versions, extras, device, memory; with a spec its models, keys and files. Nothing is downloaded.
    """
    from mmc.program.doctor import doctor
    from mmc.spec import load

    found = doctor(load(spec, set_) if spec is not None else None)
    if json_:
        print_json([asdict(one) for one in found])
    else:
        width = max(len(one.name) for one in found)
        for one in found:
            print(f"{one.verdict:<7}  {one.name:<{width}}  {one.detail}")
    if any(one.verdict == "missing" for one in found):
        raise typer.Exit(4)
