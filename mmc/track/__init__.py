"""Trackers: what a compile measures also goes to TensorBoard, Trackio, Weights & Biases and MLflow.

base    what a tracker is given and must do
send    one thread a tracker: nothing waits for it, and it fails alone
others  one tracker a file
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from types import MappingProxyType

from mmc.errors import EnvironmentProblem, UsageError
from mmc.track.base import Point, Run, Tracker, Wanted
from mmc.track.mlflow import MLflow
from mmc.track.send import Senders
from mmc.track.tensorboard import TensorBoard
from mmc.track.trackio import Trackio
from mmc.track.wandb import WandB

TRACKERS: Mapping[str, Callable[[], Tracker]] = MappingProxyType(
    {"tensorboard": TensorBoard, "trackio": Trackio, "wandb": WandB, "mlflow": MLflow}
)
"""Name on the command line, which is also that of the package it needs -> the tracker.

To add one: a file here with a class that satisfies :class:`mmc.track.base.Tracker` and imports the package in ``__init__``; an
entry here; the package in the extra `track`.
"""


def wanted(text: str) -> Wanted:
    """Reads ``NAME[:WHERE]``. Raises UsageError for a name that there is not, EnvironmentProblem when its package is missing."""
    name, _, where = text.partition(":")
    if name not in TRACKERS:
        raise UsageError(f"--track {text}: there are {', '.join(TRACKERS)}, as NAME or NAME:WHERE")
    if not _installed(name):
        raise EnvironmentProblem(f"--track {name} needs {name}: pip install 'mmc[track]'")
    return Wanted(name, where)


def _installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ValueError:  # something stands in its place
        return False


__all__ = ["TRACKERS", "Point", "Run", "Senders", "Tracker", "Wanted", "wanted"]
