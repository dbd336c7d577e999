"""The program's own endpoint: what it answers is what `mmc run` prints, and what is wrong is said."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from mmc.data import Example
from mmc.engine import open_engines
from mmc.program.graph import Program
from mmc.program.run import RunSettings, run_all
from mmc.program.trajectory import Trajectory
from mmc.serve.app import Service
from mmc.serve.options import Options
from mmc.spec import load

Serve = Callable[..., None]
QUESTIONS = [f"question {i} of {'many ' * (i % 3)}" for i in range(16)]
LONG = {"model": "tiny/say", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 3000}
"""A request that decodes for seconds."""


def alone(folder: Path, question: str, temperature: float = 0.0, seed: int = 0) -> Trajectory:
    """The run that `mmc run` makes."""
    program = Program.build(load(folder / "spec.yaml"))
    settings = RunSettings("run", 0, seed, temperature, score=False)
    return run_all(program, open_engines(program.loaded), [Example("run", {"question": question})], settings)[0]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_sixteen_requests_at_once_give_what_mmc_run_gives_alone(serve: Serve, folder: Path, temperature: float) -> None:
    expected = [alone(folder, question, temperature, seed=3) for question in QUESTIONS]

    async def body(client: httpx.AsyncClient, service: Service) -> None:
        query = f"/run?temperature={temperature}&seed=3&trace=true"
        answers = await asyncio.gather(*(client.post(query, json={"question": q}) for q in QUESTIONS))
        for answer, one in zip(answers, expected, strict=True):
            found = answer.json()
            assert answer.status_code == 200 and found["outputs"] == one.outputs and found["ending"] == "done"
            said = [call["completion"] for call in found["trace"]["calls"]]
            assert said == [call.completion.text for call in one.calls]
            assert found["usage"]["completion_tokens"] == sum(c.completion.completion_tokens for c in one.calls)
            assert found["usage"]["calls"] == 2

    serve(body)


def test_every_wrong_field_is_named(serve: Serve) -> None:
    async def body(client: httpx.AsyncClient, service: Service) -> None:
        answer = await client.post("/run", json={"questio": "x", "n": 1})
        found = answer.json()
        assert answer.status_code == found["status"] == 422
        assert answer.headers["content-type"] == "application/problem+json"
        assert {one["field"] for one in found["errors"]} == {"question", "questio", "n"}
        answer = await client.post("/run", json={"question": ["no", "text"]})
        assert answer.json()["errors"] == [{"field": "question", "message": "Input should be a valid string"}]
        assert (await client.post("/run", content=b"{")).status_code == 422
        unknown = await client.get("/nothing")
        assert unknown.status_code == 404 and unknown.headers["content-type"] == "application/problem+json"

    serve(body)


def test_an_interrupted_run_says_how_it_ended(serve: Serve, spec_text: str) -> None:
    number = spec_text.replace("outputs: {text: str}", "outputs: {text: int}")

    async def body(client: httpx.AsyncClient, service: Service) -> None:
        answer = await client.post("/run", json={"question": "hello"})
        found = answer.json()
        assert answer.status_code == 502 and found["ending"] in ("unparsed", "cut")
        assert "expected int" in found["detail"] and found["usage"]["calls"] == 1
        assert f'mmc_runs_total{{ending="{found["ending"]}"}} 1.0' in (await client.get("/metrics")).text

    serve(body, spec=number)


def test_the_openapi_document_has_the_programs_types(serve: Serve) -> None:
    async def body(client: httpx.AsyncClient, service: Service) -> None:
        document = (await client.get("/openapi.json")).json()
        run = document["paths"]["/run"]["post"]
        inputs = run["requestBody"]["content"]["application/json"]["schema"]
        assert inputs["properties"]["question"]["type"] == "string" and inputs["required"] == ["question"]
        outputs = run["responses"]["200"]["content"]["application/json"]["schema"]["properties"]["outputs"]
        assert outputs["properties"] == {"colour": {"enum": ["red", "green", "blue"]}, "text": {"type": "string"}}
        assert document["info"]["description"] == "Says something and picks a colour."

    serve(body)


def test_limits_of_size_time_and_number(serve: Serve) -> None:
    options = Options(running=1, waiting=1, seconds=0.5, body_bytes=1000, tokens=3500)

    async def body(client: httpx.AsyncClient, service: Service) -> None:
        large = await client.post("/run", json={"question": "x" * 2000})
        assert large.status_code == 413 and "1000 bytes" in large.json()["detail"]
        much = await client.post("/v1/chat/completions", json={**LONG, "max_tokens": 3499})
        assert much.status_code == 413 and "3500" in much.json()["detail"]
        answers = await asyncio.gather(*(client.post("/v1/chat/completions", json=LONG) for _ in range(4)))
        status = sorted(answer.status_code for answer in answers)
        assert status == [503, 503, 504, 504]
        turned_away = next(answer for answer in answers if answer.status_code == 503)
        assert turned_away.headers["retry-after"] == "1" and "1 requests are running" in turned_away.json()["detail"]
        # What nobody waits for any more is not decoded any further.
        (engine,) = service.worker._engines.values()
        for _ in range(200):
            if engine._blocked == 0:  # type: ignore[attr-defined]
                break
            await asyncio.sleep(0.01)
        assert engine._blocked == 0 and not engine._streams  # type: ignore[attr-defined]
        assert (await client.post("/run", json={"question": "x"})).status_code == 200

    serve(body, options)


def test_a_short_request_does_not_wait_for_a_long_one(serve: Serve) -> None:
    async def body(client: httpx.AsyncClient, service: Service) -> None:
        long = asyncio.create_task(client.post("/v1/chat/completions", json={**LONG, "max_tokens": 500}))
        await asyncio.sleep(0.1)
        assert not long.done()
        short = await client.post("/v1/chat/completions", json={**LONG, "max_tokens": 2})
        assert short.status_code == 200 and not long.done()
        assert (await long).json()["usage"]["completion_tokens"] == 500

    serve(body)


def test_tokens_are_counted_for_prometheus(serve: Serve) -> None:
    async def body(client: httpx.AsyncClient, service: Service) -> None:
        used: dict[str, Any] = (await client.post("/run", json={"question": "hello"})).json()["usage"]
        text = (await client.get("/metrics")).text
        assert f'mmc_tokens_total{{kind="prompt"}} {used["prompt_tokens"]}.0' in text
        assert f'mmc_tokens_total{{kind="completion"}} {used["completion_tokens"]}.0' in text
        assert 'mmc_requests_total{route="/run",status="200"} 1.0' in text
        assert "mmc_requests_running 0.0" in text and "mmc_ready 1.0" in text

    serve(body)


def test_inputs_of_every_type_are_read(serve: Serve, spec_text: str) -> None:
    typed = spec_text.replace(
        "inputs: {question: str}\n  steps", 'inputs: {question: str, n: int, tags: "list[str]"}\n  steps'
    )

    async def body(client: httpx.AsyncClient, service: Service) -> None:
        inputs = {"question": "x", "n": 3, "tags": ["a"]}
        assert (await client.post("/run", json=inputs)).status_code == 200
        wrong = await client.post("/run", json={**inputs, "n": "three", "tags": [1]})
        assert {one["field"] for one in wrong.json()["errors"]} == {"n", "tags.0"}
        # Several inputs come as JSON in OpenAI's endpoint.
        chat = {"model": "tiny", "messages": [{"role": "user", "content": json.dumps(inputs)}]}
        answer = await client.post("/v1/chat/completions", json=chat)
        assert set(json.loads(answer.json()["choices"][0]["message"]["content"])) == {"colour", "text"}
        chat["messages"][0]["content"] = "just text"  # type: ignore[index]
        assert (await client.post("/v1/chat/completions", json=chat)).status_code == 422

    serve(body, spec=typed)
