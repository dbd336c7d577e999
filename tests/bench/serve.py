"""A server's throughput: one request at a time against 16 at once, the same work, in turn.

    python tests/bench/serve.py [SPEC] [--requests 32] [--at-once 16] [--pairs 2] [--tokens 48] [--json FILE]

Two kinds of work on `mmc serve` of a spec or build (specs/helpdesk.yaml): whole runs (POST /run), and completions of its
first module with as many tokens as asked for (OpenAI's endpoint). Each side gets questions nobody asked before; the server
keeps what prompts have in common. It is started once, and its first requests are not timed. Seconds of the server's CPU are
counted too: on a machine that does other things besides, they tell more than a clock.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil

from mmc.data import load_split
from mmc.spec import load
from mmc.spec.load import LoadedSpec

REPO = Path(__file__).parents[2]
Ask = Callable[[httpx.AsyncClient, dict[str, Any]], Awaitable[int]]
"""Sends one request; gives the tokens that were written for it."""
Served = tuple[str, psutil.Process]


@contextmanager
def server(spec: Path) -> Iterator[Served]:
    """`mmc serve` while it is needed: its address and its process."""
    command = [sys.executable, "-m", "mmc", "serve", str(spec), "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            address = process.stderr.readline().split()[-1]
            while process.stderr.readline() != "ready\n":
                if process.poll() is not None:
                    raise SystemExit("the server ended")
            yield address, psutil.Process(process.pid)
        finally:
            process.terminate()


async def run(client: httpx.AsyncClient, inputs: dict[str, Any]) -> int:
    answer = await client.post("/run", json=inputs)
    return int(answer.json()["usage"]["completion_tokens"])


def chat(loaded: LoadedSpec, tokens: int) -> Ask:
    model = f"{loaded.spec.name}/{next(iter(loaded.spec.modules))}"

    async def ask(client: httpx.AsyncClient, inputs: dict[str, Any]) -> int:
        messages = [{"role": "user", "content": f"Write a long story about this: {next(iter(inputs.values()))}"}]
        body = {"model": model, "messages": messages, "max_tokens": tokens}
        return int((await client.post("/v1/chat/completions", json=body)).json()["usage"]["completion_tokens"])

    return ask


def cpu_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


async def timed(served: Served, ask: Ask, rows: Sequence[dict[str, Any]], at_once: int) -> dict[str, float]:
    """Seconds and written tokens of ``rows``, ``at_once`` of them under way."""
    address, process = served
    slots = asyncio.Semaphore(at_once)

    async with httpx.AsyncClient(base_url=address, timeout=600) as client:

        async def one(row: dict[str, Any]) -> tuple[int, float]:
            async with slots:
                begun = time.perf_counter()
                return await ask(client, row), time.perf_counter() - begun

        start, cpu = time.perf_counter(), cpu_seconds(process)
        found = await asyncio.gather(*map(one, rows))
        seconds, cpu = time.perf_counter() - start, cpu_seconds(process) - cpu
    tokens = sum(written for written, _ in found)
    return {
        "at_once": at_once,
        "seconds": seconds,
        "tokens": tokens,
        "tokens_per_second": tokens / seconds,
        "tokens_per_cpu_second": tokens / cpu,
        "requests_per_second": len(rows) / seconds,
        "median_latency": statistics.median(latency for _, latency in found),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("spec", type=Path, nargs="?", default=REPO / "specs/helpdesk.yaml")
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--at-once", type=int, default=16)
    parser.add_argument("--pairs", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    loaded = load(options.spec)
    names = list(loaded.spec.program.inputs)
    questions = [{name: example.row[name] for name in names} for example in load_split(loaded, "train")]
    needed = 2 * options.pairs * options.requests + options.at_once
    if needed > len(questions):
        raise SystemExit(f"{needed} questions are needed, the training data has {len(questions)}")
    found: list[dict[str, Any]] = []
    with server(options.spec) as served:
        for kind, ask in (("runs", run), ("completions", chat(loaded, options.tokens))):
            rest = iter(questions)
            asyncio.run(timed(served, ask, [next(rest) for _ in range(options.at_once)], options.at_once))
            for _ in range(options.pairs):
                for at_once in (1, options.at_once):
                    rows = [next(rest) for _ in range(options.requests)]
                    found.append({"kind": kind, **asyncio.run(timed(served, ask, rows, at_once))})
                    print(json.dumps(found[-1]), flush=True)
    for kind in ("runs", "completions"):
        rows = [row for row in found if row["kind"] == kind]
        for unit in ("second", "cpu_second"):
            speeds = [row[f"tokens_per_{unit}"] for row in rows]
            ratio = statistics.median(b / a for a, b in zip(speeds[::2], speeds[1::2], strict=True))
            print(f"{kind}: {options.at_once} at once write {ratio:.1f} times the tokens of one per {unit}")
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
