"""TensorBoard: event files in a folder. What the run was is not told there; it stands in the run folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmc.track.base import Run


class TensorBoard:
    """A run below the folder ``where``, or below the run folder: one event file a process, which are read as one run."""

    def __init__(self) -> None:
        from tensorboard.summary import Writer

        self._writer_of: Any = Writer

    def open(self, run: Run) -> str:
        folder = (Path(run.where).resolve() if run.where else run.folder / "tensorboard") / run.key
        self._writer: Any = self._writer_of(str(folder))
        return f"tensorboard --logdir {folder.parent}"

    def log(self, group: str, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(f"{group}/{name}", value, step)

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()
