"""Files and folders that are there whole or not at all, whenever the process is killed."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Gives a path to write to, which takes the place of ``path`` at the end; after an error ``path`` is what it was, and what
    was written is gone.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Gives an empty folder to fill, which takes the place of ``path`` at the end. One process at a time writes ``path``."""
    temporary = path.with_name(f"{path.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)  # what a killed process left
    temporary.mkdir(parents=True)
    yield temporary
    shutil.rmtree(path, ignore_errors=True)
    temporary.rename(path)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Gives an empty folder to fill, which becomes ``path`` at the end; several processes may do so at once. Nothing is left
    after an error. Raises OSError when ``path`` is there by then and holds something.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}-"))
    try:
        temporary.chmod(0o755)  # others may read it, as what mkdir makes
        yield temporary
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
