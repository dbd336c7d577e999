"""Adapters, optimizer and step on disk; a checkpoint is there whole or not at all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mmc.engine.adapters import Adapters


@dataclass(frozen=True)
class Checkpoint:
    """One finished step on disk. ``best`` is the best dev score so far and the step it belongs to."""

    folder: Path
    step: int
    best: tuple[float, int] | None


def save(
    folder: Path, step: int, adapters: Adapters, names: Iterable[str], optimizer: Any, best: tuple[float, int] | None
) -> Checkpoint:
    """Writes ``folder/step-<step>`` after ``step`` finished steps, then removes the older ones."""
    final, temporary = folder / f"step-{step:06d}", folder / f"step-{step:06d}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    for name in names:
        adapters.save(name, temporary / "adapters" / name)
    torch.save(optimizer.state_dict(), temporary / "optimizer.pt")
    state = {"step": step, "best": best}
    (temporary / "state.json").write_text(json.dumps(state) + "\n", encoding="utf-8")
    shutil.rmtree(final, ignore_errors=True)
    temporary.rename(final)
    for old in folder.glob("step-*"):
        if old != final:
            shutil.rmtree(old, ignore_errors=True)
    return Checkpoint(final, step, best)


def latest(folder: Path) -> Checkpoint | None:
    """The last whole checkpoint in ``folder``."""
    for path in sorted(folder.glob("step-??????"), reverse=True):
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
        best = state["best"]
        return Checkpoint(path, state["step"], tuple(best) if best else None)
    return None


def restore(checkpoint: Checkpoint, adapters: Adapters, names: Iterable[str], optimizer: Any) -> None:
    """Puts a checkpoint's tensors into the adapters and the optimizer that stand ready."""
    from safetensors.torch import load_file

    for name in names:
        stored = load_file(checkpoint.folder / "adapters" / name / "adapter_model.safetensors")
        adapters.assign(name, stored)
    optimizer.load_state_dict(torch.load(checkpoint.folder / "optimizer.pt", weights_only=True))


def trim_metrics(file: Path, step: int) -> None:
    """Keeps the lines of ``metrics.jsonl`` that belong to finished steps; a line torn by a kill is dropped."""
    if not file.exists():
        return
    kept = []
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except ValueError:
            continue
    temporary = file.with_suffix(".tmp")
    temporary.write_text("".join(kept), encoding="utf-8")
    temporary.replace(file)
