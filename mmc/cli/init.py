"""mmc init: an example as a project of your own."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer


def _complete(incomplete: str) -> list[str]:
    from mmc.build.example import EXAMPLES

    return [name for name in EXAMPLES if name.startswith(incomplete)]


def init_command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where to; made when it is not there.")],
    example: Annotated[
        str, typer.Option(help="Which example; a wrong name lists them.", autocompletion=_complete)
    ] = "helpdesk",
) -> None:
    """Write an example to a folder: spec, templates, data.

    Nothing is overwritten.
    """
    from mmc.build.example import write_example

    files = write_example(example, folder)
    for file in files:
        print(file)
    spec = shlex.quote(str(files[0]))
    print(f"\nnext: mmc check {spec}\nthen: mmc compile {spec}")
