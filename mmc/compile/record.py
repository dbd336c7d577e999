"""What a run folder holds: inputs of every stage, finished results, a lock; all written whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmc.errors import EnvironmentProblem
from mmc.files import whole_file

Inputs = Mapping[str, Any]


def write_json(path: Path, value: Any) -> None:
    """Writes ``value``; a reader sees the old file or the whole new one."""
    with whole_file(path) as new:
        new.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def append_line(path: Path, value: Any) -> None:
    """Adds ``value`` to a file of JSON lines."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(value, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """The value in ``path``, None when there is no such file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def digest(value: Any) -> str:
    """SHA-256 of ``value`` as JSON with sorted keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def changed_keys(old: Inputs, new: Inputs, prefix: str = "") -> list[str]:
    """Dotted names of the leaves that differ."""
    found: list[str] = []
    for key in sorted({*old, *new}):
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            found += changed_keys(before, after, f"{prefix}{key}.")
        elif before != after:
            found.append(f"{prefix}{key}")
    return found


def open_stage(folder: Path, inputs: Inputs) -> list[str]:
    """Makes ``folder`` ready for a stage with these inputs. What other inputs left there is removed; says which changed."""
    old = read_json(folder / "inputs.json")
    plain = json.loads(json.dumps(inputs, default=str))
    if old == plain:
        return []
    changed = changed_keys(old, plain) if old is not None else []
    shutil.rmtree(folder, ignore_errors=True)
    write_json(folder / "inputs.json", plain)
    return changed


def finished_stage(below: Path, name: str, inputs: Inputs) -> Path | None:
    """The folder of a stage called ``name`` anywhere below a folder that was finished with these inputs."""
    plain = json.loads(json.dumps(inputs, default=str))
    for result in sorted(below.rglob(f"*-{name}/result.json")):
        if read_json(result.with_name("inputs.json")) == plain:
            return result.parent
    return None


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps a second compile out of the same run folder. The lock of a process that is gone is taken over."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = folder / "lock"
    while True:
        try:
            handle = os.open(lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
            break
        except FileExistsError:
            owner = lock.read_text(encoding="utf-8").strip() if lock.exists() else ""
            if owner.isdigit() and _alive(int(owner)):
                message = f"process {owner} is compiling the same spec in {folder}; wait for it, or use another --runs"
                raise EnvironmentProblem(message) from None
            lock.unlink(missing_ok=True)
    with os.fdopen(handle, "w") as file:
        file.write(str(os.getpid()))
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return process != os.getpid()
