"""Sums of gradients over the workers: torch.distributed, with NCCL between GPUs and Gloo between CPUs."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

from mmc.cluster.orders import Meeting, PeersLost


class Collective:
    """One worker's membership in a process group. ``doing`` is told what is being waited for."""

    def __init__(self, doing: Callable[[str], None]) -> None:
        self._doing = doing
        self._token: str | None = None
        self._store: Any = None
        self.seconds = 0.0
        """Spent in sums so far, waiting for the others included."""

    def host(self, address: str, size: int, timeout: float) -> int:
        """Opens the place where ``size`` workers meet, at a free port of this one; the port."""
        self.leave()
        limit = timedelta(seconds=timeout)
        self._store = TCPStore(address, 0, size, is_master=True, timeout=limit, wait_for_workers=False)
        return int(self._store.port)

    def join(self, meeting: Meeting, rank: int, address: str, device: torch.device) -> None:
        """Meets the others, unless they have met already; ``address`` is this worker's. Raises PeersLost."""
        if self._token == meeting.token:
            return
        self._doing(f"meeting the other workers at {meeting.address}:{meeting.port}")
        limit = timedelta(seconds=meeting.timeout)
        store, self._store = self._store, None
        self.leave()
        _name_interface(address)
        try:
            if rank:
                store = TCPStore(meeting.address, meeting.port, meeting.size, is_master=False, timeout=limit)
            dist.init_process_group(
                "nccl" if device.type == "cuda" else "gloo",
                store=PrefixStore(meeting.token, store),
                rank=rank,
                world_size=meeting.size,
                timeout=limit,
                device_id=device if device.type == "cuda" else None,
            )
        except RuntimeError as error:
            raise PeersLost(f"the workers did not meet at {meeting.address}:{meeting.port}: {_first(error)}") from error
        self._token, self._store = meeting.token, store

    def leave(self) -> None:
        """Ends the membership; the others notice when they next wait for this worker."""
        if dist.is_initialized():
            dist.destroy_process_group()
        self._token = self._store = None

    def sum(self, parameters: Sequence[Tensor]) -> None:
        """Makes every tensor's gradient the sum over the workers; None where no worker has one. Raises PeersLost."""
        here = [float(p.grad is not None) for p in parameters]
        parts = [(torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1).float() for p in parameters]
        flat = torch.cat([*parts, torch.tensor(here, device=parts[0].device)])
        self._doing(f"the all-reduce of {4 * len(flat) / 1e6:.3g} MB of gradients")
        began = time.perf_counter()
        try:
            dist.all_reduce(flat)
            anywhere = flat[-len(here) :].tolist()  # on a GPU, this waits for it
        except RuntimeError as error:
            waited = time.perf_counter() - began
            raise PeersLost(f"the all-reduce of gradients failed after {waited:.1f} s: {_first(error)}") from error
        self.seconds += time.perf_counter() - began
        start = 0
        for parameter, found in zip(parameters, anywhere, strict=True):
            part = flat[start : start + parameter.numel()]
            parameter.grad = part.view_as(parameter).to(parameter.dtype) if found else None
            start += parameter.numel()
        self._doing("the optimizer's step")


def _first(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def _name_interface(address: str) -> None:
    """Gloo listens where the machine's name leads, often to itself alone; so it is told the interface of the cluster."""
    import psutil

    for name, found in psutil.net_if_addrs().items():
        if any(one.address == address for one in found):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
