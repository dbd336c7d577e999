"""Programs that a module wrote: what they give, and what they cannot do."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mmc.errors import ToolError
from mmc.spec.tools import SandboxTool
from mmc.tool.sandbox import Sandbox, plain_code

Ask = Callable[..., Any]


@pytest.fixture
def sandbox() -> Iterator[Callable[..., Ask]]:
    """A sandbox with these settings, as a function of the code and its variables."""
    tools: list[Sandbox] = []

    def make(**settings: Any) -> Ask:
        tool = Sandbox(SandboxTool(type="sandbox", **settings))
        tools.append(tool)
        return lambda code, **variables: asyncio.run(tool({"code": code, **variables}))

    yield make
    for tool in tools:
        tool.close()


def test_a_program_gives_its_last_value_and_what_it_printed(sandbox: Callable[..., Ask]) -> None:
    found = sandbox()("print('rows', len(rows))\nsum(row['n'] for row in rows)", rows=[{"n": 2}, {"n": 40}])
    assert found == {"value": 42, "printed": "rows 2\n", "error": None}


@pytest.mark.parametrize(
    ("code", "value"),
    [
        ("x = 1", None),
        ("(1, 2.5, None, True)", [1, 2.5, None, True]),
        ("{'a': [1]}", {"a": [1]}),
        ("import math, re, json\njson.dumps([math.floor(2.5), re.findall('a+', 'aba')])", '[2, ["a", "a"]]'),
        ("from datetime import date\ndate(2024, 5, 17)", "2024-05-17"),
        ("def f(n):\n    return n if n < 2 else f(n - 1) + f(n - 2)\nf(15)", 610),
    ],
)
def test_values_are_plain_data(sandbox: Callable[..., Ask], code: str, value: Any) -> None:
    assert sandbox()(code) == {"value": value, "printed": "", "error": None}


def test_the_same_program_does_the_same_again(sandbox: Callable[..., Ask]) -> None:
    ask, code = sandbox(), "import random, time\ntime.sleep(30)\n[random.random() for _ in range(3)]"
    begun = time.monotonic()
    assert ask(code) == ask(code) == sandbox()(code)
    assert time.monotonic() - begun < 20, "nobody waits for a program that sleeps"


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("x = (", "SyntaxError"),
        ("rows", "NameError: name 'rows' is not defined"),
        ("raise ValueError('no such row')", "ValueError: no such row"),
        ("while True: pass", "TimeoutError"),
        ("text = 'a'\nwhile True: text += text", "MemoryError"),
        ("def f(): return f()\nf()", "RecursionError"),
        ("10 ** 5000", "no JSON"),
    ],
)
def test_a_program_that_fails_is_an_answer(sandbox: Callable[..., Ask], code: str, error: str) -> None:
    found = sandbox(timeout=2, memory=16)(f"print('begun')\n{code}")
    assert found["value"] is None and error in found["error"], found
    assert found["printed"] == ("" if error == "SyntaxError" else "begun\n")
    if error == "ZeroDivisionError: division by zero":
        assert "line 2" in found["error"], "where, too"


def test_a_program_sees_nothing_of_this_machine(
    sandbox: Callable[..., Ask], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("s3cret")
    monkeypatch.setenv("A_SECRET", "s3cret")
    ask = sandbox()
    escapes = [
        f"open({str(secret)!r}).read()",
        f"open({str(tmp_path / 'new')!r}, 'w').write('x')",
        f"from pathlib import Path\nPath({str(secret)!r}).read_text()",
        f"import os\nos.listdir({str(tmp_path)!r})",
        "import os\nos.environ['A_SECRET']",
        "import os\nos.getenv('A_SECRET')",
        "import os\nos.system('id')",
        "import subprocess\nsubprocess.run(['id'])",
        "import socket\nsocket.create_connection(('127.0.0.1', 1))",
        "import urllib.request\nurllib.request.urlopen('http://127.0.0.1:1')",
        "import ctypes",
        "().__class__.__base__.__subclasses__()",
        "__import__('os').system('id')",
    ]
    for code in escapes:
        found = ask(code)
        assert found["value"] is None and (found["error"] or "getenv" in code), (code, found)
        assert "s3cret" not in json.dumps(found)
    assert [path.name for path in tmp_path.iterdir()] == ["secret"]


def test_a_program_leaves_nothing_to_the_next(sandbox: Callable[..., Ask]) -> None:
    ask = sandbox(concurrency=1)
    assert ask("kept = 1\nkept")["value"] == 1
    assert "NameError" in ask("kept")["error"]


def test_what_is_printed_is_cut(sandbox: Callable[..., Ask]) -> None:
    found = sandbox(max_output=7)("for i in range(100_000):\n    print(i)\n'end'")
    assert found == {"value": "end", "printed": "0\n1\n2\n3", "error": None}


def test_programs_run_side_by_side_as_many_as_allowed() -> None:
    tool = Sandbox(SandboxTool(type="sandbox", timeout=1, concurrency=3))

    async def all_of_them() -> list[Any]:
        endless = ({"code": "while True: pass"} for _ in range(2))
        return list(await asyncio.gather(*map(tool, endless), tool({"code": "6 * 7"})))

    *stopped, quick = asyncio.run(all_of_them())
    assert quick["value"] == 42 and all("TimeoutError" in one["error"] for one in stopped)
    tool.close()


def test_code_that_is_no_text_is_refused(sandbox: Callable[..., Ask]) -> None:
    with pytest.raises(ToolError, match="`code` is a text, not int"):
        sandbox()(3)


def test_code_in_a_block_of_markdown_is_taken_out_of_it() -> None:
    assert plain_code("```python\nx = 1\nx\n```\n") == plain_code("\n``` \nx = 1\nx\n```") == "x = 1\nx"
    assert plain_code("x = '```'\nx") == "x = '```'\nx"


def test_its_processes_end_with_this_one() -> None:
    code = """
import asyncio, os
from mmc.spec.tools import SandboxTool
from mmc.tool.sandbox import Sandbox
print(asyncio.run(Sandbox(SandboxTool(type="sandbox"))({"code": "1 + 1"}))["value"], os.getpid(), flush=True)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    value, parent = done.stdout.split()
    assert value == "2"
    assert (
        parent not in subprocess.run(["ps", "-eo", "ppid="], capture_output=True, text=True, check=True).stdout.split()
    )
