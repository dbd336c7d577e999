"""A program of two modules on the tiny model, and its server: in this process, or in one of its own."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import httpx
import pytest

from mmc.program.graph import Program
from mmc.serve.app import Service, make_app
from mmc.serve.desk import Desk
from mmc.serve.gate import Gate
from mmc.serve.measure import Measures
from mmc.serve.options import Options
from mmc.serve.worker import Worker
from mmc.spec import load

SPEC = """\
mmc: 1
name: tiny
description: Says something and picks a colour.
models:
  policy: {type: local, source: "path:SOURCE"}
modules:
  say:
    model: policy
    template: say.j2
    inputs: {question: str}
    outputs: {text: str}
    max_tokens: 12
  pick:
    model: policy
    template: say.j2
    inputs: {question: str}
    outputs: {colour: {enum: [red, green, blue]}}
    constrain: true
program:
  inputs: {question: str}
  steps: [{call: say}, {call: pick}]
  outputs: {colour: "{{ pick.colour }}", text: "{{ say.text }}"}
"""
DEFAULTS = Options()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Path:
    place = tmp_path_factory.mktemp("served")
    (place / "spec.yaml").write_text(SPEC.replace("SOURCE", str(tiny_model_dir)))
    (place / "say.j2").write_text("{% system %}Answer.{% endsystem %}{% user %}{{ question }}{% enduser %}")
    return place


@asynccontextmanager
async def served(spec: Path, options: Options = DEFAULTS) -> AsyncIterator[tuple[httpx.AsyncClient, Service]]:
    """A client of the program's server in this process, and what it is made of."""
    program = Program.build(load(spec))
    worker, measures = Worker(program), Measures()
    service = Service(program, options, worker, Desk(options, measures), measures)
    transport = httpx.ASGITransport(app=Gate(make_app(service), options, measures), raise_app_exceptions=False)
    try:
        await worker.load()
        service.desk.open()
        async with httpx.AsyncClient(transport=transport, base_url="http://tiny", timeout=60) as client:
            yield client, service
    finally:
        worker.close()


@pytest.fixture
def serve(folder: Path) -> Callable[..., None]:
    """Runs a test's body with a client and the service."""

    def go(
        body: Callable[[httpx.AsyncClient, Service], Awaitable[None]],
        options: Options = DEFAULTS,
        spec: str = "",
    ) -> None:
        async def whole() -> None:
            place = folder / "spec.yaml"
            if spec:
                place = folder / "other.yaml"
                place.write_text(spec)
            async with served(place, options) as (client, service):
                await body(client, service)

        asyncio.run(whole())

    return go


@pytest.fixture(scope="module")
def spec_text(folder: Path) -> str:
    return (folder / "spec.yaml").read_text()


@contextmanager
def process(folder: Path, *options: str, **environment: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """`mmc serve` in a process of its own, once it is ready: its address and itself."""
    command = [sys.executable, "-m", "mmc", "serve", "spec.yaml", "--port", "0", *options]
    env = {**os.environ, **environment}
    with subprocess.Popen(command, cwd=folder, env=env, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        try:
            address = server.stderr.readline().split()[-1]
            assert address.startswith("http://127.0.0.1:"), address
            for _ in range(1200):
                if httpx.get(f"{address}/health").status_code == 200:
                    break
                assert server.poll() is None, server.stderr.read()
                time.sleep(0.05)
            yield address, server
        finally:
            server.kill()
