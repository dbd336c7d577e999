"""Budgets of tokens from memory, held against what a forward really takes."""

from __future__ import annotations

import gc
from pathlib import Path

import psutil
import pytest
import torch
from transformers import AutoModelForCausalLM

from mmc.engine.adapters import Adapters, LoraOptions
from mmc.trie import budget
from mmc.trie.budget import bytes_per_node, sampling_budget, training_budget
from mmc.trie.logprobs import Sampled, free_logprobs
from mmc.trie.model import TrieModel


def test_a_node_takes_the_memory_that_the_process_grows_by(real_model_dir: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(real_model_dir, dtype=torch.float32).eval()
    trie, adapters = TrieModel(model), Adapters(model, "")
    adapters.create("a", LoraOptions(16, 32.0, 0.0, "all-linear"), seed=1)
    samples = [Sampled([5 + i] * 10, list(range(100, 400)), [None] * 300) for i in range(3)]
    with adapters.active("a", train=True):
        found = bytes_per_node(trie)
        gc.collect()
        before = psutil.Process().memory_info().rss
        logprobs_F, _, nodes = free_logprobs(trie, samples)
        grown = psutil.Process().memory_info().rss - before
        assert logprobs_F.requires_grad and nodes > 900
    # Beside what is kept there are logits, masks, and memory that the process had already.
    assert 0.7 < grown / nodes / found < 2


def test_half_the_memory_holds_half_the_tokens(tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trie = TrieModel(AutoModelForCausalLM.from_pretrained(tiny_model_dir).eval())
    size = bytes_per_node(trie)
    monkeypatch.setitem(budget.MOST_ON_CPU, 4, budget.MOST)
    for tokens in (1024, 2048, 8192):
        assert training_budget(trie, int(1.01 * tokens * size / budget.SHARE)) == tokens
        assert training_budget(trie, int(1.9 * tokens * size / budget.SHARE)) == tokens
    assert training_budget(trie, 0) == budget.LEAST
    assert training_budget(trie, 1 << 50) == budget.MOST


@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 1024), (torch.bfloat16, 2048)])
def test_a_forest_on_a_cpu_is_bounded_by_its_numbers(tiny_model_dir: Path, dtype: torch.dtype, most: int) -> None:
    trie = TrieModel(AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=dtype).eval())
    assert training_budget(trie, 1 << 50) == most


@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 4), (torch.bfloat16, 2)])
def test_keys_and_values_of_what_is_sampled_fit_their_share(
    tiny_model_dir: Path, dtype: torch.dtype, size: int
) -> None:
    trie = TrieModel(AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=dtype).eval())
    # Keys and values of 2 layers, 2 heads, 8 wide.
    assert sampling_budget(trie, 1000 * 8 * size * 2 * 2 * 2 * 8) == 1000
    assert sampling_budget(trie, 1 << 50) == budget.MOST
