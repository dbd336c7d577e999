"""Python functions as tools: whatever they do, a call ends."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from typing import Any

import pytest

from mmc.errors import ToolError
from mmc.tool.python import PythonFunction


def ask(tool: PythonFunction, *calls: dict[str, Any]) -> list[Any]:
    async def all_of_them() -> list[Any]:
        return list(await asyncio.gather(*(tool(call) for call in calls), return_exceptions=True))

    return asyncio.run(all_of_them())


def test_functions_that_hang_neither_block_others_nor_the_end() -> None:
    stop = threading.Event()

    def hang(i: int) -> int:
        if i % 2:
            stop.wait(20)
        return i

    start = time.monotonic()
    found = ask(PythonFunction(hang, 0.2, 64), *({"i": i} for i in range(40)))
    assert [one for one in found if not isinstance(one, ToolError)] == list(range(0, 40, 2))
    assert {str(one) for one in found if isinstance(one, ToolError)} == {"no answer within 0.2 s"}
    assert time.monotonic() - start < 5
    stop.set()


def test_the_process_ends_though_a_function_hangs() -> None:
    code = """
import asyncio, time
from mmc.tool.python import PythonFunction
try:
    asyncio.run(PythonFunction(lambda: time.sleep(60), 0.1, 1)({}))
except Exception as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout == "no answer within 0.1 s\n"


def test_an_async_function_that_blocks_its_loop_blocks_no_run() -> None:
    over = threading.Event()

    async def rude() -> None:
        over.wait(20)

    async def polite(n: int) -> int:
        await asyncio.sleep(0.01)
        return n + 1

    start = time.monotonic()
    (late,) = ask(PythonFunction(rude, 0.2, 8), {})
    assert isinstance(late, ToolError) and time.monotonic() - start < 10
    over.set()
    assert ask(PythonFunction(polite, 5, 8), {"n": 1}, {"n": 2}) == [2, 3]


def test_at_most_so_many_calls_run_at_a_time_and_waiting_costs_no_time_of_theirs() -> None:
    running, most = 0, 0
    lock = threading.Lock()

    def count() -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.05)
        with lock:
            running -= 1

    tool = PythonFunction(count, 0.5, 2)
    for _ in range(2):  # a second batch of runs has a loop of its own
        assert ask(tool, *({} for _ in range(24))) == [None] * 24
    assert most == 2


@pytest.mark.parametrize("error", [ValueError("no luck"), SystemExit(3)])
def test_what_a_function_raises_is_the_calls_failure(error: BaseException) -> None:
    def fail() -> None:
        raise error

    (found,) = ask(PythonFunction(fail, 5, 1), {})
    assert isinstance(found, Exception) and str(found) in ("no luck", "the function called sys.exit")
