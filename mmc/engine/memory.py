"""The memory there is, and how this process keeps it.

By default glibc returns every freed block of more than 32 MB to the system, and the top of its heap. Every layer of a forward
then touches new pages, which the system zeroes first: on some machines that takes as long as the arithmetic.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmc.errors import EnvironmentProblem

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's mallopt (malloc.h)."""
_LARGEST = 2**31 - 1
"""Of what mallopt takes, an int: bytes."""


def keep_freed_memory() -> bool:
    """Sets that for this process; whether it could be (only with glibc)."""
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all(mallopt(key, _LARGEST) == 1 for key in (_MMAP_THRESHOLD, _TRIM_THRESHOLD))


CGROUP = Path("/sys/fs/cgroup")
"""Where a container finds the limits of its control group (version 2)."""


def total_bytes(device: Any) -> int:
    """Memory of ``device``, a torch.device; on a CPU the machine's, or what the container may have of it."""
    import psutil
    import torch

    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[1])
    return min(int(psutil.virtual_memory().total), _limit() or sys.maxsize)


def free_bytes(device: Any) -> int:
    """What of it can be had now."""
    import psutil
    import torch

    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    available, limit = int(psutil.virtual_memory().available), _limit()
    return available if limit is None else max(0, min(available, limit - _used()))


def _limit() -> int | None:
    try:
        return int((CGROUP / "memory.max").read_text())
    except (OSError, ValueError):  # no control group, or the word "max"
        return None


def _used() -> int:
    """Without the files' pages that the system would give up."""
    counted = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
    return int((CGROUP / "memory.current").read_text()) - int(counted.get("inactive_file", 0))


@contextmanager
def memory_for(what: str, remedy: str) -> Iterator[None]:
    """Around work with a model. Raises EnvironmentProblem with ``remedy`` where the memory does not hold ``what``."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not _ran_out(error):
            raise
        cause = (str(error).strip() or "MemoryError").splitlines()[0]
        raise EnvironmentProblem(f"out of memory in {what}; {remedy} ({cause})") from error


def _ran_out(error: Exception) -> bool:
    """Only for a GPU's memory torch has a class of its own; of a machine's its allocator says so in a plain RuntimeError."""
    import torch

    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)
