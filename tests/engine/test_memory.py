"""Freed memory stays with the process; a container's limit counts."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch

from mmc.engine import memory
from mmc.errors import EnvironmentProblem

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
print(min(faults() for _ in range(8)))
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="mallopt is glibc's")
@pytest.mark.parametrize(("keep", "kept"), [(False, False), (True, True)])
def test_a_large_tensor_takes_the_pages_of_the_one_before(keep: bool, kept: bool) -> None:
    code = TOUCH.format(keep=keep)
    found = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True)
    # 100 MB are some 24,000 pages of 4 kB, or 49 of 2 MB.
    assert (int(found.stdout) < 10) == kept


def test_memory_is_the_machines_without_a_control_group(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    total = psutil.virtual_memory().total
    for limit in (None, "max\n", str(2 * total)):
        if limit is not None:
            (tmp_path / "memory.max").write_text(limit)
            (tmp_path / "memory.current").write_text("5")
            (tmp_path / "memory.stat").write_text("anon 5\n")
        assert memory.total_bytes(torch.device("cpu")) == total
        assert 0 < memory.free_bytes(torch.device("cpu")) < total


def test_a_containers_limit_counts_and_the_files_it_has_read_do_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    for name, text in (("max", "100000"), ("current", "90000"), ("stat", "anon 60000\ninactive_file 30000\n")):
        (tmp_path / f"memory.{name}").write_text(text)
    assert memory.total_bytes(torch.device("cpu")) == 100_000
    assert memory.free_bytes(torch.device("cpu")) == 40_000


def test_too_little_memory_is_told_with_what_to_do() -> None:
    with (
        pytest.raises(EnvironmentProblem, match=r"out of memory in a step; wait \(.*can't allocate memory"),
        memory.memory_for("a step", "wait"),
    ):
        torch.empty(2**60)
    with pytest.raises(EnvironmentProblem, match=r"\(MemoryError\)"), memory.memory_for("a step", "wait"):
        raise MemoryError
    with pytest.raises(RuntimeError, match="shapes"), memory.memory_for("a step", "wait"):
        torch.ones(2, 3) @ torch.ones(2, 3)
