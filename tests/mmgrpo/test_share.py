"""Cutting a batch for several workers: nothing is lost, the largest part is the smallest possible, and gradients add up."""

from __future__ import annotations

from itertools import combinations, pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmc.mmgrpo.share import cut, cut_sequences
from mmc.trie.pack import pack, sort_order

from .lab import Lab, settings_of

TOKENS = st.lists(st.integers(0, 2), min_size=1, max_size=5)


def packed(sequences: list[list[int]], part: list[int]) -> int:
    return len(pack([sequences[i] for i in part])) if part else 0


@given(st.lists(TOKENS, max_size=9), st.integers(1, 4))
def test_parts_are_neighbours_and_no_other_cut_has_a_smaller_largest_part(
    sequences: list[list[int]], parts: int
) -> None:
    found = cut_sequences(sequences, parts)
    order = sort_order(sequences)
    assert len(found) == parts and [i for part in found for i in part] == order
    largest = max(packed(sequences, part) for part in found)
    for cuts in combinations(range(1, len(order)), min(parts, len(order)) - 1) if order else ():
        others = [order[a:b] for a, b in pairwise([0, *cuts, len(order)])]
        assert largest <= max(packed(sequences, part) for part in others)


@pytest.mark.parametrize("loss", ["grpo", "dr_grpo", "dapo", "gspo", "cispo"])
def test_gradients_and_sums_of_the_parts_are_those_of_the_batch(
    tmp_path: Path, tiny_model_dir: Path, loss: str
) -> None:
    config = settings_of(loss)
    lab = Lab.make(tmp_path, tiny_model_dir, "llama", config).sampled(config)
    calls = lab.calls(config)
    whole, gradients = lab.step(config, calls, 0.05)
    total = {name: {key: torch.zeros_like(g) for key, g in found.items()} for name, found in gradients.items()}
    sums = dict.fromkeys(("loss", "tokens", "entropy", "kl", "clipped"), 0.0)
    parts = cut(calls, 3)
    assert all(parts) and sum(map(len, parts)) == len(calls)
    for part in parts:
        report, found = lab.step(config, part, 0.05)
        sums = {name: value + getattr(report, name) for name, value in sums.items()}
        for name, tensors in found.items():
            for key, gradient in tensors.items():
                total[name][key] += 0 if gradient is None else gradient
    for name, value in sums.items():
        assert value == pytest.approx(getattr(whole, name), rel=1e-4, abs=1e-6), name
    for name, tensors in gradients.items():
        for key, gradient in tensors.items():
            torch.testing.assert_close(total[name][key], gradient, rtol=1e-3, atol=1e-6)


def test_calls_of_one_adapter_stay_together_where_there_are_several(tmp_path: Path, tiny_model_dir: Path) -> None:
    config = settings_of()
    lab = Lab.make(tmp_path, tiny_model_dir, "llama", config).sampled(config)
    parts = cut(lab.calls(config), 2)
    shared = {call.adapter for call in parts[0]} & {call.adapter for call in parts[1]}
    assert len(shared) <= 1, "one cut goes through one adapter at most"
