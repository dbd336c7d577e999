"""The program runner against DSPy's: two modules over a server that answers at once, so that the client is what is timed.

    python tests/bench/runner.py [--count 2000] [--pairs 3] [--json FILE]

The same two modules, examples and server (aiohttp, in a process of its own) for both. mmc: `type: openai` and `type: litellm`,
32 requests at a time, nothing cached. DSPy: Predict twice and Evaluate, its cache off, with 4, 8 and 16 threads; the fastest
counts. Each side is a process of its own and starts its clock after one example. Seconds of CPU are those of that process.
Then mmc once more with ten times the examples, for its memory. Needs the environment of DSPy that `make bench` installs.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

REPO = Path(__file__).parents[2]
STEP = Path(__file__).parent / "step"
DSPY = REPO / ".peers/dspy/bin/python"
THREADS = (4, 8, 16)
Json = dict[str, Any]


@contextmanager
def server() -> Iterator[str]:
    with subprocess.Popen([sys.executable, str(STEP / "stub_server.py")], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield f"http://127.0.0.1:{int(process.stdout.readline())}/v1"
        finally:
            process.terminate()


def side(python: str | Path, script: str, *arguments: object) -> Json:
    """One side's line."""
    command = [str(python), str(STEP / script), *map(str, arguments)]
    environment = {**os.environ, "OPENAI_API_KEY": "none"}
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True, env=environment
    )
    found: Json = json.loads(done.stdout.splitlines()[-1])
    return found


def pair(address: str, count: int) -> Json:
    """Every side once, one after the other; examples a second, and milliseconds of CPU an example."""
    sides = {
        f"mmc, {kind}": side(sys.executable, "mmc_runner.py", address, count, kind) for kind in ("openai", "litellm")
    }
    theirs = [side(DSPY, "dspy_runner.py", address, count, threads) for threads in THREADS]
    sides["dspy"] = min(theirs, key=lambda one: float(one["seconds"]))
    return {
        name: {"rate": count / one["seconds"], "cpu_ms": 1e3 * one["cpu"] / count, "memory_mib": one["memory_mib"]}
        for name, one in sides.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if not DSPY.exists():
        raise SystemExit("DSPy is not installed: run `make bench`, or `make .peers/dspy/.ready`")
    with server() as address:
        pairs = []
        for number in range(options.pairs):
            pairs.append(pair(address, options.count))
            print(
                f"pair {number + 1}: " + "; ".join(f"{n} {one['rate']:.0f}/s" for n, one in pairs[-1].items()),
                flush=True,
            )
        many = side(sys.executable, "mmc_runner.py", address, 10 * options.count, "openai")
    for name in ("mmc, openai", "mmc, litellm"):
        ratios = [one[name]["rate"] / one["dspy"]["rate"] for one in pairs]
        cpu = [one["dspy"]["cpu_ms"] / one[name]["cpu_ms"] for one in pairs]
        spread = f"{min(ratios):.1f} to {max(ratios):.1f}"
        print(f"{name}: {statistics.median(ratios):.1f} times DSPy's examples a second ({spread}); ", end="")
        print(f"DSPy takes {statistics.median(cpu):.1f} times the CPU")
    few = statistics.median(one["mmc, openai"]["memory_mib"] for one in pairs)
    print(
        f"memory at most: {few:.0f} MiB with {options.count} examples, {many['memory_mib']:.0f} MiB with ten times as many"
    )
    if options.json is not None:
        options.json.write_text(json.dumps({"pairs": pairs, "many": many}, indent=2) + "\n")


if __name__ == "__main__":
    main()
