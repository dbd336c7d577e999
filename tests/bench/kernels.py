"""Products and attention of a layer of SmolLM2-135M on this CPU: PyTorch's own against oneDNN's, in turn.

    python tests/bench/kernels.py [--times 9] [--json FILE]

A forward's and a backward's product with a matrix, by `torch` (MKL's in float32), by oneDNN from the matrix as it is, and by
oneDNN from a packed copy; and PyTorch's attention kernel, forward and backward (counted as twice the forward), beside the two
plain products of the same sizes. GFLOP/s, medians; every way is run once before. Whether `mmc.engine.onednn.faster` is right
about a processor shows here. Needs no data.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmc.engine import onednn

HIDDEN, INNER, HEADS, GROUPS, WIDTH = 576, 1536, 3, 3, 64
ROWS = (32, 200, 1024)
BLOCKS = ((67, 736), (256, 736), (256, 960))
"""Rows of a block of attention, and its keys."""
Json = dict[str, Any]


def rates(ways: Mapping[str, tuple[float, Callable[[], object]]], times: int) -> dict[str, float]:
    """GFLOP/s of each way, by the floating-point operations it needs; all are run in turn."""
    spent: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(times + 1):
        for name, (_, run) in ways.items():
            start = time.perf_counter()
            run()
            if turn:
                spent[name].append(time.perf_counter() - start)
    return {name: round(count / statistics.median(spent[name]) / 1e9, 1) for name, (count, _) in ways.items()}


def by_onednn(matrix: Tensor, x: Tensor) -> Callable[[], object]:
    return lambda: torch.ops.mkldnn._linear_pointwise(x, matrix, None, "none", [], "")


def product_ways(dtype: torch.dtype, rows: int) -> dict[str, tuple[float, Callable[[], object]]]:
    x, weight, gradient = (torch.randn(shape).to(dtype) for shape in ((rows, HIDDEN), (INNER, HIDDEN), (rows, INNER)))
    count = 2.0 * rows * HIDDEN * INNER
    return {
        "forward, torch": (count, lambda: torch.nn.functional.linear(x, weight)),
        "forward, oneDNN": (count, by_onednn(weight, x)),
        "forward, oneDNN packed": (count, by_onednn(onednn.pack(weight), x)),
        "backward, torch": (count, lambda: gradient @ weight),
        "backward, oneDNN": (count, by_onednn(weight.T, gradient)),
    }


def attention_ways(dtype: torch.dtype, rows: int, keys: int) -> dict[str, tuple[float, Callable[[], object]]]:
    q, k, v = (torch.randn(1, HEADS, count, WIDTH).to(dtype).requires_grad_() for count in (GROUPS * rows, keys, keys))
    mask = torch.zeros(1, 1, GROUPS * rows, keys, dtype=dtype)
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    gradient = torch.randn_like(out)
    count = 4.0 * HEADS * GROUPS * rows * keys * WIDTH

    @torch.no_grad()
    def forward() -> object:
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    @torch.no_grad()
    def products() -> object:
        return (q @ k.transpose(-1, -2)) @ v

    return {
        "forward": (count, forward),
        "backward": (2 * count, lambda: torch.autograd.grad(out, (q, k, v), gradient, retain_graph=True)),
        "two products": (count, products),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=9)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found: list[Json] = []
    for dtype in (torch.float32, torch.bfloat16):
        matrix = torch.empty(1, 1, dtype=dtype)
        if not onednn.packable(matrix):
            raise SystemExit(f"oneDNN has no fast products in {dtype} on this processor")
        name = str(dtype).removeprefix("torch.")
        taken = "oneDNN" if onednn.faster(matrix) else "torch"
        for rows in ROWS:
            found.append(
                {"dtype": name, "rows": rows, "taken": taken, **rates(product_ways(dtype, rows), options.times)}
            )
            print(json.dumps(found[-1]), flush=True)
        for rows, keys in BLOCKS:
            ways = attention_ways(dtype, rows, keys)
            found.append({"dtype": name, "rows": rows, "keys": keys, **rates(ways, options.times)})
            print(json.dumps(found[-1]), flush=True)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
