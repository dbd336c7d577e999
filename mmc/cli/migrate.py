"""mmc migrate: a spec of an older version, brought to the present one."""

from __future__ import annotations

import difflib
import shutil
from typing import Annotated

import typer

from mmc.cli.common import SpecArgument


def migrate_command(
    spec: SpecArgument,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would change as a diff; write nothing.")
    ] = False,
) -> None:
    """Bring a spec of an older version up to date, in place.

    Comments and layout stay as they are.
    """
    from mmc.spec.load import read_text, spec_file
    from mmc.spec.migrate import migrate

    file = spec_file(spec)
    found = migrate(read_text(file), str(file))
    if found.old == found.new:
        print(f"{file}: version {found.old} is the present one; nothing to do")
        return
    if dry_run:
        before, after = (text.splitlines(keepends=True) for text in (found.before, found.after))
        print("".join(difflib.unified_diff(before, after, str(file), f"{file} (version {found.new})")), end="")
        return
    target = file.resolve()
    beside = target.with_name(f".{target.name}.new")
    beside.write_text(found.after, encoding="utf-8")
    shutil.copymode(target, beside)
    beside.replace(target)
    print(f"{file}: version {found.old} -> {found.new}\nnext: mmc check {file}")
