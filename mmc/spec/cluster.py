"""How the work of a compile is spread over a Ray cluster."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mmc.spec.keys import Keys


class Cluster(Keys):
    """Workers of `mmc compile --cluster`; without that option, nothing here acts. None of it changes what is compiled: a compile
    may go on with another number of workers.
    """

    workers: int | None = Field(None, gt=0)
    """How many; as many as the cluster has room for when left out."""
    cpus: int = Field(1, gt=0)
    """CPU cores of each, and so the threads it computes with."""
    gpus: Literal[0, 1] | None = None
    """GPUs of each; one where the cluster has any, when left out."""
    timeout: float = Field(1800.0, gt=0)
    """Seconds without a result from a worker after which the compile ends with an error that says who, where and how long: at its
    start, when weights are pushed, in one update, and between two runs that it finishes."""
