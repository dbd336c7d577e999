"""The trie's gradient against plain backward passes over one sequence at a time."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from mmc.engine.adapters import Adapters, LoraOptions
from mmc.trie import attention
from mmc.trie.attention import FLEX_ON
from mmc.trie.logprobs import Sampled, free_logprobs
from mmc.trie.model import TrieModel


def samples(vocabulary: int, seed: int) -> list[Sampled]:
    """Ragged completions of prompts that share beginnings; some positions constrained, some forced."""
    rng = random.Random(seed)
    root = [rng.randrange(4, vocabulary) for _ in range(30)]
    found = []
    for _ in range(5):
        prompt = [*root, *(rng.randrange(4, vocabulary) for _ in range(rng.randint(1, 6)))]
        for _ in range(4):
            ids = [rng.randrange(4, 40) for _ in range(rng.randint(2, 8))]
            allowed: list[np.ndarray | None] = [None] * len(ids)
            allowed[0] = np.array(sorted({ids[0], 5, 7, 11}), dtype=np.int32)
            allowed[-1] = np.array([ids[-1]], dtype=np.int32) if rng.random() < 0.5 else None
            found.append(Sampled(prompt, ids, allowed, temperature=0.7))
    return found


def plain_logprobs(model: torch.nn.Module, sample: Sampled) -> torch.Tensor:
    row = [*sample.prompt_ids, *sample.ids_T]
    ids = torch.tensor([row], device=next(model.parameters()).device)
    logits = model(input_ids=ids, use_cache=False).logits[0, len(sample.prompt_ids) - 1 : -1]
    chosen = []
    for t in sample.free_T:
        scaled = logits[t].float() / sample.temperature
        allowed = sample.allowed_T[t]
        if allowed is not None:
            mask = torch.full_like(scaled, -torch.inf)
            mask[torch.from_numpy(allowed.astype(np.int64)).to(mask.device)] = 0
            scaled = scaled + mask
        chosen.append(torch.log_softmax(scaled, dim=-1)[sample.ids_T[t]])
    return torch.stack(chosen)


def check(folder: Path, tolerance: float, device: str = "cpu") -> None:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(device).eval()
    trie, adapters = TrieModel(model), Adapters(model, "")
    adapters.create("a", LoraOptions(4, 8.0, 0.0, "all-linear"), seed=1)
    parameters = adapters.parameters("a")
    torch.manual_seed(1)
    for name, tensor in parameters.items():
        if "lora_B" in name:
            torch.nn.init.normal_(tensor, std=0.02)
    batch = samples(min(2000, model.config.vocab_size), seed=3)
    weights = torch.randn(sum(len(s.free_T) for s in batch)).to(device)
    with adapters.active("a", train=True):
        logprobs, _, packed = free_logprobs(trie, batch)
        (logprobs * weights).sum().backward()
        ours = {name: p.grad.clone() for name, p in parameters.items()}
        assert packed < sum(len(s.needed) for s in batch) / 3
        for p in parameters.values():
            p.grad = None
        model.set_attn_implementation("eager")
        start = 0
        for sample in batch:
            expected = plain_logprobs(model, sample)
            count = len(expected)
            torch.testing.assert_close(logprobs[start : start + count], expected, rtol=1e-3, atol=1e-4)
            (expected * weights[start : start + count]).sum().backward()
            start += count
    difference = sum((ours[n] - p.grad).square().sum() for n, p in parameters.items()) ** 0.5
    norm = sum(p.grad.square().sum() for p in parameters.values()) ** 0.5
    assert norm > 0 and difference / norm < tolerance


def test_gradient_equals_one_sequence_at_a_time(tiny_model_dir: Path) -> None:
    check(tiny_model_dir, 1e-4)


def test_gradient_through_batches_of_blocks(tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks, batches = attention._blocks, set[int]()

    def small(spans: attention.Spans, device: torch.device, block_rows: int, heads: int) -> list[attention.Block]:
        found = blocks(spans, device, 8, heads)
        batches.update(len(block.mask_BRK) for block in found)
        return found

    monkeypatch.setattr(attention, "_blocks", small)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 5)
    check(tiny_model_dir, 1e-4)
    assert max(batches) > 1


def test_gradient_equals_one_sequence_at_a_time_on_the_real_model(real_model_dir: Path) -> None:
    check(real_model_dir, 1e-4)


@pytest.mark.gpu
def test_gradient_equals_one_sequence_at_a_time_on_a_gpu(real_model_dir: Path) -> None:
    check(real_model_dir, 1e-3, "cuda")
    assert "cuda" in FLEX_ON, "through FlexAttention"


def test_every_sample_needs_a_token_sampled_by_choice(tiny_model_dir: Path) -> None:
    trie = TrieModel(AutoModelForCausalLM.from_pretrained(tiny_model_dir).eval())
    with pytest.raises(ValueError, match="none may be empty"):
        free_logprobs(trie, [Sampled([5, 6], [7], [np.array([7], dtype=np.int32)])])
