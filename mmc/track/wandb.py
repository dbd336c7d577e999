"""Weights & Biases: online where somebody is logged in, otherwise a folder that `wandb sync` uploads."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from mmc.track.base import Run


class WandB:
    """A run in the project ``where`` (``PROJECT`` or ``ENTITY/PROJECT``), or in one named after the spec."""

    def __init__(self) -> None:
        import wandb

        self._library: Any = wandb

    def open(self, run: Run) -> str:
        library = self._library
        entity, _, project = run.where.rpartition("/")
        run.folder.mkdir(parents=True, exist_ok=True)
        mode = os.environ.get("WANDB_MODE") or ("online" if library.login(prompt=False) else "offline")
        self._run = library.init(
            entity=entity or None,
            project=project or run.project,
            id=run.key,
            name=run.key,
            resume="allow",
            dir=str(run.folder),
            mode=mode,
            config=dict(run.settings),
            settings=library.Settings(console="off", silent=True),
        )
        self._logged, self._groups = run.logged, set[str]()
        offline = f"wandb sync --append {self._run.settings.sync_dir}"
        return offline if self._run.offline else str(self._run.url)

    def log(self, group: str, step: int, values: Mapping[str, float]) -> None:
        if group not in self._groups:
            self._groups.add(group)
            self._run.define_metric(f"{group}/*", step_metric=f"{group}/step")
        line = {f"{group}/{name}": value for name, value in values.items()}
        # The library's own step only ever grows within a run; ours are counted by group.
        self._run.log({**line, f"{group}/step": step}, step=self._logged)
        self._logged += 1

    def flush(self) -> None:
        pass

    def close(self) -> None:
        self._run.finish()
