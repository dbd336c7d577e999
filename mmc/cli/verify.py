"""mmc verify: whether a build is what its lock says."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from mmc.cli.common import JsonOption, complete_spec, print_json


def verify_command(
    build: Annotated[Path, typer.Argument(metavar="BUILD", help="A build folder.", autocompletion=complete_spec)],
    json_: JsonOption = False,
) -> None:
    """Say whether a build is what its lock says.

    Its templates, adapters, corpora and data are compared with the hashes in mmc.lock.
    """
    from mmc.build.verify import verify

    found = verify(build)
    if json_:
        print_json([asdict(one) for one in found])
    else:
        width = max(len(one.name) for one in found)
        for one in found:
            print(f"{one.name:<{width}}  {one.verdict}" + (f"  {one.detail}" if one.detail else ""))
    if any(one.verdict in ("changed", "missing") for one in found):
        raise typer.Exit(3)
