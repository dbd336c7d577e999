"""MLflow: a run on a tracking server, or in a local SQLite file."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from mmc.track.base import Run

BATCH = 100
"""Parameters that one request may carry."""
LONGEST = 6000
"""Characters that a parameter may have."""


class MLflow:
    """A run at the tracking URI ``where``, or in ``mlflow.db`` beside the run folder's own files.

    The experiment is named after the spec, the run after its key, under which it is found again.
    """

    def __init__(self) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param

        with suppress(ImportError):  # what a server does not need, and a file would import later
            import mlflow.store.tracking.sqlalchemy_store  # noqa: F401
        for name in ("mlflow", "alembic"):  # they tell how a new database is made
            logging.getLogger(name).setLevel(logging.WARNING)
        self._client_of: Any = MlflowClient
        self._metric: Any = Metric
        self._param: Any = Param

    def open(self, run: Run) -> str:
        run.folder.mkdir(parents=True, exist_ok=True)
        uri = run.where or f"sqlite:///{run.folder.resolve() / 'mlflow.db'}"
        self._client = self._client_of(tracking_uri=uri)
        experiment = self._client.get_experiment_by_name(run.project)
        at = experiment.experiment_id if experiment is not None else self._client.create_experiment(run.project)
        known = self._client.search_runs([at], f"tags.`mmc.key` = '{run.key}'", max_results=1)
        if known:
            self._id = known[0].info.run_id
            self._client.update_run(self._id, "RUNNING")
        else:
            self._id = self._client.create_run(at, run_name=run.key, tags={"mmc.key": run.key}).info.run_id
            params = [self._param(name, str(value)[:LONGEST]) for name, value in run.settings.items()]
            for start in range(0, len(params), BATCH):
                self._client.log_batch(self._id, params=params[start : start + BATCH])
        return f"run {run.key} in {uri}"

    def log(self, group: str, step: int, values: Mapping[str, float]) -> None:
        now = int(1000 * time.time())
        metrics = [self._metric(f"{group}/{name}", value, now, step) for name, value in values.items()]
        self._client.log_batch(self._id, metrics=metrics)

    def flush(self) -> None:
        pass

    def close(self) -> None:
        self._client.set_terminated(self._id)
