"""Keeps memory that tensors gave back for the next ones.

By default glibc returns every freed block of more than 32 MB to the system, and the top of its heap. Every layer of a forward
then touches new pages, which the system zeroes first: on some machines that takes as long as the arithmetic.
"""

from __future__ import annotations

import ctypes
import sys

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
