"""Freed memory stays with the process."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

TOUCH = """
import resource
import torch
from mmc.engine.memory import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(25_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

torch.ones(10)
assert {keep} is False or keep_freed_memory()
faults()
print(faults())
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="mallopt is glibc's")
@pytest.mark.parametrize(("keep", "kept"), [(False, False), (True, True)])
def test_a_large_tensor_takes_the_pages_of_the_one_before(keep: bool, kept: bool) -> None:
    code = TOUCH.format(keep=keep)
    found = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True)
    # 100 MB are some 24,000 pages of 4 kB, or 49 of 2 MB.
    assert (int(found.stdout) < 10) == kept
