"""A build behind the server: its modules run with the adapters they were given."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mmc.data import Example
from mmc.engine import open_engines
from mmc.program.graph import Program
from mmc.program.run import RunSettings, run_all
from mmc.program.trajectory import Trajectory
from mmc.spec import load
from tests.serve.conftest import served

ROWS = [{"question": f"which animal {i}"} for i in range(6)]


def alone(program: Program) -> list[Trajectory]:
    settings = RunSettings("run", 0, 0, 0.0, score=False)
    return run_all(program, open_engines(program.loaded), [Example("run", row) for row in ROWS], settings)


def test_a_served_build_and_its_modules_run_with_their_adapters(build: Path) -> None:
    program = Program.build(load(build))
    adapted, plain = alone(program), alone(program.with_adapters({"query": None, "pick": None}))
    said = [run.calls[0].completion.text for run in adapted]
    assert said != [run.calls[0].completion.text for run in plain], "the adapter makes a difference"

    async def body() -> list[Any]:
        async with served(build) as (client, _):
            runs = await asyncio.gather(*(client.post("/run", json=row) for row in ROWS))
            assert [answer.json()["outputs"] for answer in runs] == [run.outputs for run in adapted]
            bodies = (
                {"model": "tiny/query", "messages": [asdict(m) for m in run.calls[0].messages]} for run in adapted
            )
            chats = await asyncio.gather(*(client.post("/v1/chat/completions", json=one) for one in bodies))
            return [answer.json()["choices"][0]["message"]["content"] for answer in chats]

    assert asyncio.run(body()) == said
