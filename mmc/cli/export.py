"""mmc export: a build in the form that something else takes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mmc.cli.common import SpecArgument, TrustOption
from mmc.errors import UsageError


def export_command(
    build: SpecArgument,
    to: Annotated[str, typer.Option(help="vllm, merged (full weights), hub (Hugging Face's), or python (one file).")],
    out: Annotated[Path | None, typer.Option(help="The folder to write; export/NAME-TARGET when left out.")] = None,
    examples: Annotated[int, typer.Option(min=0, help="Of dev, that vllm's smoke test asks about.")] = 8,
    push: Annotated[str | None, typer.Option(metavar="OWNER/NAME", help="Upload it to this repository (hub).")] = None,
    trust: TrustOption = False,
) -> None:
    """Write a build in the form that something else takes.

    For vLLM, as full weights, as a repository of Hugging Face's hub, or as one Python file that runs without mmc.
    """
    from mmc.build.export import ExportJob, export
    from mmc.build.export import push as push_folder
    from mmc.program.graph import Program
    from mmc.spec import load

    if push is not None and to != "hub":
        raise UsageError(f"--push goes with --to hub, not --to {to}")
    program = Program.build(load(build), trust)
    folder = out if out is not None else Path("export") / f"{program.spec.name}-{to}"
    print(export(to, ExportJob(program, folder, examples)))
    if push is not None:
        print(push_folder(folder, push))
