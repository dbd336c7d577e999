"""Run folders: which there are, what each is compiling, and how far it is."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from mmc.view.lines import Row, read_json

STAGE = re.compile(r"\d+-[a-z]+")
Status = Literal["running", "done", "failed", "interrupted", "unknown"]
"""Interrupted: the process is gone before its end; unknown: the folder is of a version that did not say."""
LOG = 200
"""Lines of a log that are shown, the last ones."""


@dataclass(frozen=True)
class Run:
    """One run folder. ``id`` is its path below the folder of runs, with ``~`` for each slash."""

    id: str
    folder: Path

    @property
    def about(self) -> Row:
        """run.json; empty where there is none."""
        return read_json(self.folder / "run.json") or {}

    @property
    def name(self) -> str:
        """The program's; the folder's where it is not known."""
        return str(self.about.get("name", self.folder.name))

    @property
    def status(self) -> Status:
        if _held(self.folder / "lock"):
            return "running"
        match self.about.get("state"):
            case "running":
                return "interrupted"
            case "done":
                return "done"
            case "failed":
                return "failed"
        return "unknown"

    @property
    def scores(self) -> list[Row]:
        """stages.json: the held-out scores so far."""
        return read_json(self.folder / "stages.json") or []

    @property
    def progress(self) -> Row | None:
        """progress.json, with ``left``: the seconds that the piece of work still takes, None when it cannot be told."""
        found = read_json(self.folder / "progress.json")
        return None if found is None else {**found, "left": _left(found)}

    @property
    def changed(self) -> float:
        """When anything in the folder was last written, as a time stamp."""
        files = [*self.folder.iterdir(), *self.folder.glob("*/*"), *self.folder.glob("*/*/*.jsonl")]
        return max((_changed(path) for path in files), default=0.0)

    def stages(self) -> list[Stage]:
        """Its stage folders in their order; a stage that occurs twice gets a suffix."""
        found, seen = [], dict[str, int]()
        for folder in sorted(_stage_folders(self.folder), key=lambda path: int(path.name.split("-")[0])):
            kind = folder.name.partition("-")[2]
            seen[kind] = seen.get(kind, 0) + 1
            label = kind if seen[kind] == 1 else f"{kind}.{seen[kind]}"
            found.append(Stage(folder.name, kind, label, folder))
        return found

    def waiting(self) -> list[str]:
        """Stages of the strategy that have not begun."""
        return list(self.about.get("strategy", []))[len(self.stages()) :]

    def scorings(self) -> list[Row]:
        """What was scored, newest first, each with the ``name`` of its files."""
        found = []
        for path in (self.folder / "scores").glob("*.json"):
            known = read_json(path)
            if known is not None:
                mean = sum(known["scores"]) / max(1, len(known["scores"]))
                row = {"name": path.stem, "what": known.get("what", ""), "split": known["split"], "mean": mean}
                found.append({**row, "n": len(known["scores"]), "at": _changed(path)})
        return sorted(found, key=lambda row: -row["at"])

    def log(self) -> list[str]:
        """The last lines that were said."""
        path = self.folder / "log.txt"
        return path.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG:] if path.exists() else []


@dataclass(frozen=True)
class Stage:
    """One stage folder of a run."""

    id: str
    kind: str
    label: str
    folder: Path

    @property
    def result(self) -> Row | None:
        """None while it is not finished."""
        found: Row | None = read_json(self.folder / "result.json")
        return found

    @property
    def findings(self) -> list[str]:
        """What the first rollouts told of the reward."""
        return list((read_json(self.folder / "training/audit.json") or {}).get("findings", []))


def find_runs(root: Path) -> list[Run]:
    """The runs at or below ``root``, the one that changed last first."""
    found = [Run(_id(root, folder), folder) for folder in _run_folders(root)]
    return sorted(found, key=lambda run: -run.changed)


def find_run(root: Path, id_: str) -> Run | None:
    """The run of that id."""
    return next((Run(id_, folder) for folder in _run_folders(root) if _id(root, folder) == id_), None)


def _id(root: Path, folder: Path) -> str:
    return folder.name if folder == root else str(folder.relative_to(root)).replace(os.sep, "~")


def _run_folders(root: Path) -> Iterator[Path]:
    """``root`` itself or what is in it; and the cells of an ablation, which lie inside a run."""
    tops = (
        [root] if _is_run(root) else sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
    )
    for top in tops:
        if _is_run(top):
            yield top
        if (top / "matrix").is_dir():
            yield from sorted(path for path in (top / "matrix").iterdir() if _is_run(path))


def _is_run(folder: Path) -> bool:
    return folder.is_dir() and (
        (folder / "run.json").exists() or (folder / "scores").is_dir() or bool(_stage_folders(folder))
    )


def _stage_folders(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_dir() and STAGE.fullmatch(path.name)]


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _held(lock: Path) -> bool:
    """Whether the process that holds a run is alive."""
    try:
        owner = lock.read_text(encoding="utf-8").strip()
        os.kill(int(owner), 0)
    except PermissionError:
        return True
    except (OSError, ValueError):
        return False
    return True


def _left(progress: Row) -> float | None:
    done, total = int(progress["done"]), int(progress["total"])
    if not 0 < done < total:
        return None
    began, at = (datetime.fromisoformat(progress[key]) for key in ("began", "at"))
    late = (datetime.now(UTC) - at).total_seconds()
    return max(0.0, (at - began).total_seconds() * (total - done) / done - late)


def when(value: Any) -> str:
    """A time stamp or an ISO time in this machine's time, to the minute; empty for None."""
    if value is None:
        return ""
    moment = datetime.fromisoformat(value) if isinstance(value, str) else datetime.fromtimestamp(value, UTC)
    return moment.astimezone().strftime("%Y-%m-%d %H:%M")
