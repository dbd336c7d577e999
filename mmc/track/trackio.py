"""Trackio: a SQLite file that `trackio show` reads, or a Space on the Hub."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import redirect_stdout
from io import StringIO
from typing import Any

from mmc.track.base import Run

WRITES = 1.0
"""Seconds after which what was logged is in the file: Trackio writes every half second, and has no flush."""


class Trackio:
    """A run in the Space ``where``, or in Trackio's own folder, which its variable TRACKIO_DIR names.

    The project is named after the spec. Trackio orders points by one step of the run, so each group carries its own.
    """

    def __init__(self) -> None:
        import trackio

        self._library: Any = trackio

    def open(self, run: Run) -> str:
        with redirect_stdout(StringIO()):  # what stands there is a command's result
            self._run = self._library.init(
                project=run.project,
                name=run.key,
                space_id=run.where or None,
                config=dict(run.settings),
                resume="allow",
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )
        self._logged = run.logged
        return f"the Space {run.where}" if run.where else f"trackio show --project {run.project}"

    def log(self, group: str, step: int, values: Mapping[str, float]) -> None:
        line = {f"{group}/{name}": value for name, value in values.items()}
        self._run.log({**line, f"{group}/step": step}, step=self._logged)
        self._logged += 1

    def flush(self) -> None:
        time.sleep(WRITES)

    def close(self) -> None:
        with redirect_stdout(StringIO()):
            self._run.finish()
