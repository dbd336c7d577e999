"""mmc view: runs in a browser, while they run and after."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer


def view_command(
    runs: Annotated[
        Path, typer.Argument(metavar="[RUNS]", help="A run, or the folder that a compile keeps its runs in.")
    ] = Path(".mmc/runs"),
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 0,
    open_: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
) -> None:
    """Show runs on a local web page: scores, curves, what search tried, every group of a training. Reads, never writes."""
    from mmc.view.server import serve

    def ready(address: str) -> None:
        print(address, flush=True)
        print("Ctrl-C ends it", file=sys.stderr)
        if open_:
            typer.launch(address)

    with suppress(KeyboardInterrupt):
        serve(runs, port, ready)
