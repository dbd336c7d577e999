"""The cluster: a connection to Ray, how many workers it has room for, and engines whose work is done there."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from mmc.engine.base import Engine
from mmc.errors import EnvironmentProblem, UsageError, needing
from mmc.spec.cluster import Cluster as Config
from mmc.spec.load import LoadedSpec
from mmc.spec.model import LocalModel

LOCAL = "local"
CONNECT_S = 10.0
"""How long the cluster's address may take to answer."""
STORE_BYTES = 2**30
"""Of a local cluster's object store; what does not fit goes to disk."""


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster to compile on. ``address``: ``local`` for one of this machine's own, ``auto``, or HOST:PORT of one that runs.

    A context: within, Ray is there. Raises EnvironmentProblem when Ray is missing or cannot be reached.
    """

    address: str
    config: Config

    def __enter__(self) -> Cluster:
        # Before Ray is imported, which reads it then.
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        with needing("cluster", "--cluster"):
            import ray
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}
        if self.address == LOCAL:
            cores = max(os.cpu_count() or 1, (self.config.workers or 1) * self.config.cpus)
            ray.init(address="local", num_cpus=cores, include_dashboard=False, object_store_memory=STORE_BYTES, **quiet)
        else:
            _reach(self.address)
            try:
                ray.init(address=self.address, **quiet)
            except (ConnectionError, RuntimeError, ValueError, OSError) as error:
                raise EnvironmentProblem(
                    f"--cluster {self.address}: {str(error).strip().partition(chr(10))[0]}"
                ) from error
        # What dies is said by the workers' pool; Ray would print it among the results, on stdout.
        ray._private.worker._worker_logs_enabled = False
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        import ray

        ray.shutdown()

    def open_engines(
        self, loaded: LoadedSpec, also: Sequence[str], trust: bool, say: Callable[[str], None]
    ) -> Mapping[str, Engine]:
        """As :func:`mmc.engine.open_engines`, over fresh workers; closing one of the engines ends them."""
        from mmc.cluster.engines import ClusterEngines
        from mmc.cluster.orders import Setup
        from mmc.cluster.pool import Pool, Size

        for name, model in loaded.spec.models.items():
            if isinstance(model, LocalModel) and model.sampler is not None:
                message = f"models.{name}.sampler: workers of a cluster draw by themselves; leave `sampler` or `--cluster` out"
                raise UsageError(message)
        for key in getattr(loaded.spec.compile.prompts, "knobs", {}):
            if key.endswith(".model"):
                message = f"compile.prompts.knobs: workers of a cluster open no further models; leave {key} or `--cluster` out"
                raise UsageError(message)
        workers, gpus = self._room()
        pool = Pool(Size(workers, self.config.cpus, gpus, self.config.timeout), Setup(loaded, trust, workers), say)
        devices = ", ".join(dict.fromkeys(m.about.device for m in pool.members if m.about is not None))
        nodes = len({member.about.node for member in pool.members if member.about is not None})
        threads = f"{self.config.cpus} thread{'s' if self.config.cpus > 1 else ''}"
        say(f"cluster: {workers} workers on {nodes} machine{'s' if nodes > 1 else ''}, {threads} each ({devices})")
        return ClusterEngines(
            loaded, list(dict.fromkeys([*(m.model for m in loaded.spec.modules.values()), *also])), pool
        )

    def _room(self) -> tuple[int, int]:
        """How many workers there will be, and the GPUs of each. Raises EnvironmentProblem when that is too many."""
        import ray

        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        there = any(node.get("GPU", 0) >= 1 for node in nodes)
        gpus: int = self.config.gpus if self.config.gpus is not None else int(there)
        room = sum(_fitting(node, self.config.cpus, gpus) for node in nodes)
        free = _fitting(ray.available_resources(), self.config.cpus, gpus)
        each = f"{self.config.cpus} CPU and {gpus} GPU each"
        wanted = self.config.workers or min(room, free)
        if wanted > room or wanted < 1:
            busy = "" if free >= room else f", of which {free} are free"
            raise EnvironmentProblem(
                f"the cluster has room for {room} workers of {each}{busy}; {max(1, wanted)} are asked for: "
                "set cluster.workers, cluster.cpus or cluster.gpus"
            )
        return wanted, gpus


def _fitting(resources: Mapping[str, float], cpus: int, gpus: int) -> int:
    by_cpu = int(resources.get("CPU", 0) // cpus)
    return min(by_cpu, int(resources.get("GPU", 0) // gpus)) if gpus else by_cpu


def _reach(address: str) -> None:
    """Whether anybody listens there; Ray itself asks for minutes. Raises UsageError and EnvironmentProblem."""
    if address == "auto":
        return
    if "://" in address:
        raise UsageError(f"--cluster {address}: run mmc on a machine of the cluster, and name it as HOST:PORT or auto")
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdigit():
        raise UsageError(f"--cluster {address}: it is `local`, `auto`, or HOST:PORT of a cluster that runs")
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_S).close()
    except OSError as error:
        hint = "start one with `ray start --head --port=6379`"
        raise EnvironmentProblem(f"no Ray cluster answers at {address} ({error}); {hint}") from error


def connected(address: str | None, config: Config) -> AbstractContextManager[Cluster | None]:
    """The cluster at ``address``; None where none is asked for."""
    return nullcontext() if address is None else Cluster(address, config)
