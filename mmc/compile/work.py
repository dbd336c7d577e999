"""The ledger of a compile: what each stage and each scoring used, by module, and how long it took.

Read from what is kept in run folders, so it tells of the work that the result rests on, whatever was interrupted.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmc.build import Work
from mmc.compile.record import read_json
from mmc.compile.state import Scored
from mmc.program.usage import ByModule, added, usage_from


class WorkLedger:
    """Collects the entries of one compile; what was scored once counts once."""

    def __init__(self) -> None:
        self.entries: list[Work] = []
        self._scored: set[Path] = set()

    def scored(self, stage: str, what: str, found: Scored) -> None:
        """Counts the scoring of a program; ``what``: on which split, and when."""
        if found.traces not in self._scored:
            self._scored.add(found.traces)
            self.entries.append(Work(stage, f"scoring {what}", found.seconds, found.usage))

    def stage(self, stage: str, name: str, folder: Path) -> None:
        """Counts the work of a finished stage, from its folder."""
        self.entries += [replace(work, stage=stage) for work in stage_work(name, folder)]


def stage_work(name: str, folder: Path) -> list[Work]:
    """What a finished stage did before it was scored."""
    found = read_json(folder / "result.json") or {}
    if name == "prompts":
        return [Work("", "search", found.get("seconds"), _read(found.get("usage")))]
    lines = _lines(folder / "training/metrics.jsonl")
    if name == "distill":
        runs = Work("", "runs to learn from", None, _read(found.get("usage")))
        return [runs, Work("", "updates", sum(line["seconds"] for line in lines), {})]
    usages = [_read(line.get("usage")) for line in lines]
    known = [usage for usage in usages if usage is not None]
    rollouts = Work(
        "",
        "rollouts",
        sum(line["seconds_rollout"] for line in lines),
        added(known) if len(known) == len(usages) else None,
    )
    return [rollouts, Work("", "updates", sum(line["seconds_update"] for line in lines), {})]


def _read(data: Mapping[str, Any] | None) -> ByModule | None:
    return None if data is None else usage_from(data)


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
