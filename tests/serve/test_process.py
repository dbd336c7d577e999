"""`mmc serve` as a process: OpenAI's client, the token, a client that leaves, and the end."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import httpx
import openai
import pytest

from mmc.errors import EnvironmentProblem
from mmc.program.graph import Program
from mmc.serve.options import Options
from mmc.serve.server import serve
from mmc.spec import load
from tests.serve.conftest import process
from tests.serve.test_run import LONG, alone


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    with process(folder, MMC_SERVE_TOKEN="secret") as (found, _):
        yield found


@pytest.fixture
def client(address: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{address}/v1", api_key="secret", max_retries=0) as found:
        yield found


def test_openais_client_runs_the_program(client: openai.OpenAI, folder: Path) -> None:
    assert [model.id for model in client.models.list()] == ["tiny", "tiny/say", "tiny/pick"]
    expected = alone(folder, "hello").outputs
    answer = client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "hello"}])
    assert json.loads(answer.choices[0].message.content or "") == expected
    assert answer.choices[0].finish_reason == "stop" and answer.usage and answer.usage.total_tokens > 0
    pieces = client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "hello"}], stream=True)
    assert json.loads("".join(p.choices[0].delta.content or "" for p in pieces)) == expected


def test_a_modules_completion_is_streamed_token_by_token(client: openai.OpenAI, folder: Path) -> None:
    messages = [{"role": "system", "content": "Answer."}, {"role": "user", "content": "hello"}]
    whole = client.chat.completions.create(model="tiny/say", messages=messages)  # type: ignore[arg-type]
    said = whole.choices[0].message.content
    assert said == alone(folder, "hello").calls[0].completion.text
    stream = client.chat.completions.create(
        model="tiny/say",
        messages=messages,  # type: ignore[arg-type]
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    texts = [c.choices[0].delta.content for c in chunks if c.choices and c.choices[0].delta.content]
    assert "".join(texts) == said and len(texts) > 3
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    assert chunks[-1].usage == whole.usage


def test_what_cannot_be_honoured_is_refused(client: openai.OpenAI) -> None:
    messages = [{"role": "user", "content": "hello"}]
    with pytest.raises(openai.UnprocessableEntityError, match="logprobs"):
        client.chat.completions.create(model="tiny", messages=messages, logprobs=True)  # type: ignore[call-overload]
    with pytest.raises(openai.NotFoundError, match="tiny/say"):
        client.chat.completions.create(model="tin", messages=messages)  # type: ignore[arg-type]
    with pytest.raises(openai.UnprocessableEntityError, match="at most 4096"):
        client.chat.completions.create(model="tiny/say", messages=messages, max_tokens=5000, stream=True)  # type: ignore[call-overload]


def test_without_the_token_only_health_is_open(address: str) -> None:
    assert httpx.get(f"{address}/health").json() == {"status": "ready", "program": "tiny"}
    for headers in ({}, {"Authorization": "Bearer wrong"}):
        answer = httpx.post(f"{address}/run", json={"question": "x"}, headers=headers)
        assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer"
    assert httpx.get(f"{address}/metrics").status_code == 401


def test_a_client_that_leaves_costs_nothing_more(address: str) -> None:
    headers = {"Authorization": "Bearer secret"}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{address}/v1/chat/completions", json=LONG, headers=headers, timeout=0.3)
    for _ in range(40):
        text = httpx.get(f"{address}/metrics", headers=headers).text
        if "mmc_requests_running 0.0" in text:
            break
        time.sleep(0.02)
    assert 'mmc_requests_total{route="/v1/chat/completions",status="499"} 1.0' in text


def test_told_to_stop_it_ends_what_it_can_and_takes_nothing_new(folder: Path) -> None:
    with process(folder, "--grace", "60") as (address, server), ThreadPoolExecutor() as pool:
        ask = partial(httpx.post, f"{address}/v1/chat/completions", timeout=60)
        short, long = (pool.submit(ask, json={**LONG, "max_tokens": tokens}) for tokens in (300, 4000))
        while "mmc_requests_running 2.0" not in httpx.get(f"{address}/metrics").text:
            time.sleep(0.01)
        server.send_signal(signal.SIGTERM)
        while httpx.get(f"{address}/health").json()["status"] != "stopping":
            time.sleep(0.01)
        refused = httpx.post(f"{address}/run", json={"question": "x"})
        assert refused.status_code == 503 and refused.json()["type"].endswith("stopping")
        assert short.result().status_code == 200 and short.result().json()["usage"]["completion_tokens"] == 300
        server.send_signal(signal.SIGTERM)  # the second time there is no grace
        assert long.result().status_code == 503 and server.wait(10) == 0


def test_a_port_in_use_and_a_missing_model_are_said(folder: Path, address: str) -> None:
    program = Program.build(load(folder / "spec.yaml"))
    port = int(address.rpartition(":")[2])
    with pytest.raises(EnvironmentProblem, match=f"cannot listen on 127.0.0.1 port {port}"):
        serve(program, Options(port=port), print)
    nowhere = Program.build(load(folder / "spec.yaml", ["models.policy.source=path:nowhere"]))
    with pytest.raises(EnvironmentProblem, match="no source of the model is there"):
        serve(nowhere, Options(port=0), print)
