"""Greedy classification of Banking77 queries into 77 intents: mmc against DSPy over vLLM, in turn.

    python tests/bench/classify.py [--count 120] [--pairs 1] [--dtype float32] [--json FILE]

The same model (SmolLM2-135M), queries and intents. mmc: one module, the intents in its prompt, decoding constrained to them,
`evaluate` of a loaded program. DSPy: Predict with a Literal of the intents and Evaluate with 16 threads, over vLLM's CPU build
on all cores with its prefix cache, which is running already. Loading a model is timed on neither side. Needs MMC_DATA and
what `make bench` installs.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from grpo_step import ALL_CORES, REPO, SOURCE

from mmc.data import Example
from mmc.engine import open_engines
from mmc.engine.weights import find
from mmc.program.evaluate import evaluate
from mmc.program.graph import Program
from mmc.program.run import RunSettings
from mmc.spec import load

sys.path.insert(0, str(Path(__file__).parent / "step"))
import work

SPEC = """\
mmc: 1
name: classify
models: {{policy: {{type: local, dtype: {dtype}, source: "path:{folder}"}}}}
modules:
  classify:
    model: policy
    template: classify.j2
    inputs: {{query: str}}
    outputs: {{intent: {{enum: {labels}}}}}
    constrain: true
    max_tokens: 32
program: {{inputs: {{query: str}}, steps: [{{call: classify}}], outputs: {{intent: "{{{{ classify.intent }}}}"}}}}
metric: {{type: exact, predicted: intent, gold: intent}}
"""
TEMPLATE = (
    "{{% system %}}\n{instruction}\n{{% endsystem %}}\n{{% user %}}\nQuery: {{{{ query }}}}\nIntent:\n{{% enduser %}}\n"
)
START_S = 300


def ours(folder: str, count: int, dtype: str) -> dict[str, Any]:
    place = Path(tempfile.mkdtemp())
    (place / "classify.j2").write_text(TEMPLATE.format(instruction=work.instruction()))
    (place / "spec.yaml").write_text(SPEC.format(dtype=dtype, folder=folder, labels=json.dumps(work.labels())))
    loaded = load(place / "spec.yaml")
    program, engines = Program.build(loaded), open_engines(loaded)
    rows = [Example(str(i), {"query": text, "intent": label}) for i, (text, label) in enumerate(work.labelled(count))]
    start = time.perf_counter()
    found = evaluate(program, engines, rows, RunSettings("bench", 0, 0, 0.0))
    return {"side": "mmc", "seconds": time.perf_counter() - start, "score": found.interval.mean}


@contextmanager
def server(folder: str, dtype: str) -> Iterator[str]:
    """A server of vLLM while it is needed; its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    command = [str(REPO / ".peers/vllm/bin/python"), "-m", "vllm.entrypoints.openai.api_server", "--model", folder]
    command += ["--served-model-name", "smollm2", "--dtype", dtype, "--max-model-len", "4096"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--enable-prefix-caching"]
    environment = {**os.environ, **ALL_CORES, "VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_LOGGING_LEVEL": "ERROR"}
    with tempfile.TemporaryFile() as log, subprocess.Popen(command, env=environment, stdout=log, stderr=log) as process:
        try:
            for _ in range(START_S):
                if process.poll() is not None:
                    log.seek(0)
                    raise SystemExit(log.read().decode()[-3000:])
                try:
                    if httpx.get(f"{address}/health").status_code == 200:
                        break
                except httpx.TransportError:
                    time.sleep(1)
            else:
                raise SystemExit(f"vLLM's server did not answer within {START_S} s")
            yield f"{address}/v1"
        finally:
            process.terminate()


def theirs(folder: str, count: int, dtype: str) -> dict[str, Any]:
    script = Path(__file__).parent / "step/dspy_side.py"
    with server(folder, dtype) as address:
        command = [str(REPO / ".peers/dspy/bin/python"), str(script), address, "smollm2", str(count)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return {"side": "dspy", **json.loads(done.stdout.splitlines()[-1])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=120)
    parser.add_argument("--pairs", type=int, default=1)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if "MMC_DATA" not in os.environ:
        raise SystemExit("the public data sets are needed: export MMC_DATA=... (the folder that holds banking77/)")
    missing = [side for side in ("vllm", "dspy") if not (REPO / ".peers" / side).exists()]
    if missing:
        raise SystemExit(f"{', '.join(missing)}: not installed; `make bench` does it")
    folder = str(find([SOURCE], Path).folder)
    rows: list[dict[str, Any]] = []
    for _ in range(options.pairs):
        for side in (ours, theirs):
            rows.append(side(folder, options.count, options.dtype))
            print(json.dumps(rows[-1]), flush=True)
    found = [b["seconds"] / a["seconds"] for a, b in zip(rows[::2], rows[1::2], strict=True)]
    print(f"DSPy's seconds over mmc's: {statistics.median(found):.1f} ({min(found):.1f} to {max(found):.1f})")
    if options.json:
        options.json.write_text(
            json.dumps({"count": options.count, "dtype": options.dtype, "runs": rows}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
