"""A build in the form that something else takes.

To add a target: write a file here with a function that fills a folder from an :class:`mmc.build.export.base.ExportJob`, and
put it into ``TARGETS``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from mmc.build.export.base import ExportJob
from mmc.build.export.hub import export_hub, push
from mmc.build.export.merged import export_merged
from mmc.build.export.python import export_python
from mmc.build.export.vllm import export_vllm
from mmc.errors import UsageError
from mmc.files import new_folder

TARGETS: Mapping[str, Callable[[ExportJob], None]] = {
    "vllm": export_vllm,
    "merged": export_merged,
    "hub": export_hub,
    "python": export_python,
}
"""What `mmc export --to` takes -> a function that fills the job's folder."""


def export(target: str, job: ExportJob) -> Path:
    """Writes ``job.out`` for ``target``, whole or not at all. Raises UsageError when there is something already."""
    if target not in TARGETS:
        raise UsageError(f"--to {target}: there are {', '.join(TARGETS)}")
    out = job.out.resolve()
    if out.exists():
        raise UsageError(f"{out} is there already; name another folder with --out, or remove it")
    with new_folder(out) as new:
        TARGETS[target](replace(job, out=new))
    return out


__all__ = ["TARGETS", "ExportJob", "export", "push"]
