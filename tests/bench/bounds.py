"""What a GRPO step's time is spent on, and what bounds it on this machine.

    python tests/bench/bounds.py [--work labels apart] [--dtypes float32 bfloat16] [--threads 1 2] [--json FILE]

The steps of grpo_step.py (SmolLM2-135M, LoRA rank 16). Their two halves, sampling and the update, are run once to warm up,
three times by the clock, and once under PyTorch's profiler, which says how much of the time kernels of each kind take; what is
left is Python and the dispatch of operations. Beside it stands what no program could do better without computing less: every
product of the half at the rate of this machine's large products, those of attention for the pairs of tokens that see each other
among them (twice the forward's for its backward, nothing that is computed again), and, for a decoding step, reading the weights
once at the rate at which it reads memory, where that takes longer than its products. Needs MMC_DATA.
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
from itertools import product
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent / "step"))
import mmc_side
import work
from grpo_step import SOURCE, WORKS

from mmc.data import Example
from mmc.engine import onednn, open_engines
from mmc.engine.weights import find
from mmc.mmgrpo.policy import bounded, make_policy
from mmc.mmgrpo.train import TrainingJob, make_sampler
from mmc.mmgrpo.update import module_terms, training_calls
from mmc.program.graph import Program
from mmc.spec import load
from mmc.spec.model import MmGrpo
from mmc.trie.logprobs import Sampled
from mmc.trie.pack import Forest, pack

RANK = 16
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


def one_run(kind: str, dtype: str, threads: int) -> None:
    """Prints one JSON line."""
    torch.set_num_threads(threads)
    examples, rollouts_each, tokens = WORKS[kind]
    place = Path(tempfile.mkdtemp())
    folder = str(find([SOURCE], Path).folder)
    (place / "answer.j2").write_text(mmc_side.TEMPLATE)
    (place / "spec.yaml").write_text(mmc_side.SPEC.format(dtype=dtype, folder=folder, tokens=tokens))
    program = Program.build(load(place / "spec.yaml"), True)
    engines: Any = open_engines(program.loaded)
    rows = [
        Example(str(i), {"system": system, "user": user})
        for i, (system, user) in enumerate(work.conversations(kind, examples))
    ]
    config = MmGrpo(steps=1, examples=examples, learning_rate=1e-6).model_copy(update={"rollouts": rollouts_each})
    job = TrainingJob(program, engines, rows, [], config, 0, place, trust=True)
    policy = make_policy(program, engines, config, "bounds", 0, {})
    config = bounded(config, policy, place)
    sampler = make_sampler(replace(job, config=config), program.with_adapters(policy.names), policy)
    rollouts = sampler.sample(0, 0)
    groups = mmc_side.in_pairs(rollouts.groups) if rollouts_each == 1 else rollouts.groups
    terms = module_terms(program.spec, policy.names)
    calls = training_calls(groups, config, terms)
    found = {
        "work": kind,
        "dtype": dtype,
        "threads": threads,
        "sampling": profiled(lambda: sampler.sample(0, 0)),
        "update": profiled(lambda: policy.update(training_calls(groups, config, terms), config, 0)),
        "bounds": bounds(engines["policy"].lm.model, [call.sampled for call in calls]),
    }
    print(json.dumps(found))


def bounds(model: Any, samples: Sequence[Sampled]) -> Json:
    """Seconds that the products alone would take at this machine's best rates.

    The update computes distinct tokens forward and, for their gradient, backward, and the logits of the free ones; sampling
    the prompts.
    """
    dtype = model.dtype
    head = model.get_output_embeddings().weight
    linear = (one.weight for one in model.modules() if isinstance(one, torch.nn.Linear))
    body = sum(w.numel() for w in linear if min(w.shape) > RANK and w is not head)  # without the adapter's own
    shape = model.config.get_text_config()
    # Operations of one token that sees another: its score and its share of the value.
    seeing = 4 * shape.num_hidden_layers * shape.hidden_size
    prompts = pack(list({tuple(one.prompt_ids): one.prompt_ids for one in samples}.values()))
    packed = pack([one.needed for one in samples])
    free = len({(*one.prompt_ids, *one.ids_T[:t]) for one in samples for t in one.free_T})
    steps = max(len(one.ids_T) for one in samples)
    peak, bandwidth = product_rate(dtype), memory_rate()
    size = (body + head.numel()) * head.element_size()
    return {
        "peak_gflops": peak / 1e9,
        "memory_gbs": bandwidth / 1e9,
        "tokens": len(packed),
        "free": free,
        "update_products": 4 * (len(packed) * body + free * head.numel()) / peak,
        "update_attention": 3 * seeing * pairs(packed) / peak,
        "prefill_products": 2 * len(prompts) * body / peak,
        "prefill_attention": seeing * pairs(prompts) / peak,
        "decoding_steps": steps,
        "decoding": max(steps * size / bandwidth, 2 * free * (body + head.numel()) / peak),
    }


def pairs(forest: Forest) -> int:
    """Pairs of a token and one that it sees: itself and those before it on its path."""
    return int((forest.positions_N + 1).sum())


def product_rate(dtype: torch.dtype) -> float:
    """Floating-point operations a second of a large product, the best of several, by the faster of two libraries."""
    a, b = (torch.randn(1536, 1536).to(dtype) for _ in range(2))
    ways: list[Callable[[], object]] = [lambda: a @ b]
    if onednn.packable(b):
        packed = onednn.pack(b)
        ways.append(lambda: onednn.linear(packed, None, a))
    return 2 * 1536**3 / min(best(way) for way in ways)


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
        "sampling": bound["prefill_products"] + bound["prefill_attention"] + bound["decoding"],
        "update": bound["update_products"] + bound["update_attention"],
    }
    what = f"{found['work']}, {found['dtype']}, {found['threads']} thread(s)"
    spent = {half: statistics.median(found[half]["seconds"]) for half in least}
    for half, seconds in spent.items():
        shares = ", ".join(f"{kind} {share:.0%}" for kind, share in found[half]["shares"].items())
        told.append(
            f"{what}, {half}: {seconds:.2f} s; at least {least[half]:.2f} s ({least[half] / seconds:.0%}); {shares}"
        )
    told.append(f"{what}, both: at least {sum(least.values()):.2f} s ({sum(least.values()) / sum(spent.values()):.0%})")
    rates = f"{bound['peak_gflops']:.0f} GFLOP/s in large products, {bound['memory_gbs']:.1f} GB/s from memory"
    told.append(
        f"{rates}; {bound['tokens']} tokens, {bound['free']} of them drawn, {bound['decoding_steps']} decoding steps"
    )
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", nargs="+", default=["labels"], choices=list(WORKS))
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"], choices=["float32", "bfloat16"])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, os.cpu_count() or 1])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one is not None:
        one_run(*options.one[:2], int(options.one[2]))
        return
    if "MMC_DATA" not in os.environ:
        raise SystemExit("the public data sets are needed: export MMC_DATA=... (the folder that holds banking77/)")
    rows: list[Json] = []
    for kind, dtype, threads in product(options.work, options.dtypes, options.threads):
        command = [sys.executable, __file__, "--one", kind, dtype, str(threads)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        print("\n".join(lines(rows[-1])), flush=True)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
