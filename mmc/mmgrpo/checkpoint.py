"""Adapters, optimizer and step on disk; a checkpoint is there whole or not at all."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from mmc.files import whole_file, whole_folder
from mmc.mmgrpo.policy import Learner


@dataclass(frozen=True)
class Place:
    """Where a training stands: finished steps, position in the data, and what evaluations on dev have found so far."""

    step: int = 0
    position: int = 0
    best: float | None = None
    best_step: int = 0
    worse: int = 0
    """Evaluations in a row that were no better than the best."""
    stopped: bool = False
    """Whether patience ran out."""


def save(folder: Path, place: Place, policy: Learner) -> None:
    """Writes ``folder/step-<step>`` after ``place.step`` finished steps, then removes the older ones."""
    final = folder / f"step-{place.step:06d}"
    with whole_folder(final) as new:
        policy.save(new / "adapters")
        policy.save_optimizer(new / "optimizer.pt")
        (new / "state.json").write_text(json.dumps(asdict(place)) + "\n", encoding="utf-8")
    for old in folder.glob("step-*"):
        if old != final:
            shutil.rmtree(old, ignore_errors=True)


def resume(folder: Path, policy: Learner) -> Place:
    """Puts the last whole checkpoint in ``folder`` back; where the training stands then."""
    folder.mkdir(parents=True, exist_ok=True)
    place = Place()
    for path in sorted(folder.glob("step-??????"), reverse=True)[:1]:
        place = Place(**json.loads((path / "state.json").read_text(encoding="utf-8")))
        policy.load(path / "adapters")
        policy.load_optimizer(path / "optimizer.pt")
    for name in ("metrics.jsonl", "rollouts.jsonl"):
        trim(folder / name, place.step)
    return place


def trim(file: Path, step: int) -> None:
    """Keeps the lines that belong to finished steps; a line torn by a kill is dropped."""
    if not file.exists():
        return
    with whole_file(file) as new, file.open(encoding="utf-8") as old, new.open("w", encoding="utf-8") as kept:
        for line in old:
            try:
                if json.loads(line)["step"] <= step:
                    kept.write(line)
            except ValueError:
                continue
