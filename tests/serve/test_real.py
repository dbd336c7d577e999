"""The real small model behind the server: what it answers is what a run alone gives."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from mmc.data import Example, load_split
from mmc.engine import open_engines
from mmc.program.graph import Program
from mmc.program.run import RunSettings, run_all
from mmc.spec import load
from tests.serve.conftest import served

SPEC = Path(__file__).parents[2] / "specs/helpdesk.yaml"


@pytest.mark.slow
def test_eight_requests_at_once_give_what_eight_runs_alone_give(real_model_dir: Path) -> None:
    program = Program.build(load(SPEC))
    engines = open_engines(program.loaded)
    rows = [{"question": example.row["question"]} for example in load_split(program.loaded, "dev")[:8]]
    settings = RunSettings("run", 0, 0, 0.0, score=False)
    expected = [run_all(program, engines, [Example("run", row)], settings)[0] for row in rows]

    async def body() -> None:
        async with served(SPEC) as (client, _):
            answers = await asyncio.gather(*(client.post("/run?trace=true", json=row, timeout=600) for row in rows))
        for answer, one in zip(answers, expected, strict=True):
            said = [call["completion"] for call in answer.json()["trace"]["calls"]]
            assert answer.json()["outputs"] == one.outputs and said == [call.completion.text for call in one.calls]

    asyncio.run(body())
