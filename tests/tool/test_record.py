"""Recording and replaying a tool's answers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from mmc.errors import InvalidError, ToolError
from mmc.tool.record import Cassette, Recorded


def cassette(folder: Path, config: str = "a") -> Cassette:
    return Cassette(folder / "deep/tape.jsonl", "search", config)


class Counting:
    """A tool that answers with how often it was called."""

    def __init__(self) -> None:
        self.calls = 0

    async def __call__(self, arguments: Mapping[str, Any]) -> Any:
        await asyncio.sleep(0.01)
        self.calls += 1
        if arguments.get("bad"):
            raise ToolError("no luck")
        return {"n": self.calls, "pair": (1, 2)}


def test_an_answer_is_recorded_once_and_replayed_without_the_tool(tmp_path: Path) -> None:
    tool = Counting()
    recorded = Recorded(cassette(tmp_path), tool)

    async def body() -> list[Any]:
        first, second = await asyncio.gather(recorded({"q": 1, "r": [2]}), recorded({"r": [2], "q": 1}))
        first["n"] = "spoilt"  # what a run does to its copy is its own affair
        return [second, await recorded({"q": 1, "r": [2]}), await recorded({"q": 2, "r": [2]})]

    found = asyncio.run(body())
    assert found == [{"n": 1, "pair": [1, 2]}] * 2 + [{"n": 2, "pair": [1, 2]}] and tool.calls == 2
    replay = Recorded(cassette(tmp_path), None)
    assert asyncio.run(replay({"q": 2, "r": [2]})) == {"n": 2, "pair": [1, 2]}
    with pytest.raises(ToolError, match=r"not recorded in .*tape.jsonl, and `record.mode` is replay: {.q.: 3}"):
        asyncio.run(replay({"q": 3}))


def test_another_tool_or_configuration_knows_nothing_and_failures_are_not_kept(tmp_path: Path) -> None:
    tool = Counting()
    asyncio.run(Recorded(cassette(tmp_path), tool)({"q": 1}))
    for other in (cassette(tmp_path, "b"), Cassette(tmp_path / "deep/tape.jsonl", "other", "a")):
        with pytest.raises(ToolError, match="not recorded"):
            asyncio.run(Recorded(other, None)({"q": 1}))
    for _ in range(2):
        with pytest.raises(ToolError, match="no luck"):
            asyncio.run(Recorded(cassette(tmp_path), tool)({"bad": 1}))
    assert tool.calls == 3


def test_what_another_process_adds_is_found_and_a_torn_line_costs_one_call(tmp_path: Path) -> None:
    tool = Counting()
    one, other = Recorded(cassette(tmp_path), tool), Recorded(cassette(tmp_path), tool)
    asyncio.run(one({"q": 1}))
    assert asyncio.run(other({"q": 1}))["n"] == 1
    path = tmp_path / "deep/tape.jsonl"
    path.write_bytes(path.read_bytes()[:-5])
    again = Recorded(cassette(tmp_path), tool)
    assert asyncio.run(again({"q": 1}))["n"] == 2
    assert asyncio.run(Recorded(cassette(tmp_path), None)({"q": 1}))["n"] == 2


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep/tape.jsonl").write_text(json.dumps({"question": "x"}) + "\n")
    with pytest.raises(InvalidError, match="holds no recorded answer"):
        cassette(tmp_path)
