"""A forest in parts: the values and the gradient of the whole, every node computed once, and no more alive than the budget."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from mmc.trie import parts
from mmc.trie.logprobs import Sampled, free_logprobs
from mmc.trie.model import TrieModel
from mmc.trie.pack import pack
from mmc.trie.parts import in_parts

Rows = list[list[int]]
sequences = st.lists(st.lists(st.integers(5, 7), min_size=2, max_size=14), min_size=1, max_size=25)


@pytest.fixture(scope="module")
def trie(tiny_model_dir: Path) -> TrieModel:
    """In float64, all its weights trained: whatever is added up wrongly shows."""
    return TrieModel(AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float64).eval())


def samples_of(rows: Rows) -> list[Sampled]:
    """Prompts of one token; so completions share their beginnings too, and free tokens lie in them."""
    return [Sampled(row[:1], row[1:], [None] * (len(row) - 1)) for row in rows]


def gradients(trie: TrieModel) -> torch.Tensor:
    found = torch.cat([p.grad.flatten() for p in trie.model.parameters() if p.grad is not None])
    trie.model.zero_grad(set_to_none=True)
    return found


def backward_in_parts(trie: TrieModel, samples: list[Sampled], budget: int) -> tuple[dict[int, torch.Tensor], int]:
    """Backward through the sum of all squared log-probabilities; those of each sample, and the nodes computed."""
    found: dict[int, torch.Tensor] = {}
    computed = 0
    for part in in_parts(trie, samples, budget):
        part.logprobs_F.square().sum().backward()
        counts = [len(samples[i].free_T) for i in part.members]
        found.update(zip(part.members, torch.split(part.logprobs_F.detach(), counts), strict=True))
        computed += part.computed
    return found, computed


@settings(max_examples=60)
@given(rows=sequences, budget=st.integers(1, 40), worth=st.sampled_from([1, 3]))
def test_parts_give_the_values_and_the_gradient_of_the_whole(
    trie: TrieModel, rows: Rows, budget: int, worth: int
) -> None:
    samples = samples_of(rows)
    whole, _, nodes = free_logprobs(trie, samples)
    whole.square().sum().backward()
    wanted = gradients(trie)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "WORTH", worth)
        found, computed = backward_in_parts(trie, samples, budget)
    # The head's log-probabilities are float32.
    together = torch.cat([found[i] for i in range(len(rows))])
    torch.testing.assert_close(together, whole.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradients(trie), wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))
    assert computed == nodes if worth == 1 else computed >= nodes


def test_all_that_is_kept_belongs_to_the_part_and_the_part_is_within_the_budget(
    trie: TrieModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng, alive, seen = random.Random(0), [], []
    root = [rng.randrange(5, 200) for _ in range(12)]
    prompts = [[*root, *(rng.randrange(5, 200) for _ in range(rng.randint(2, 9)))] for _ in range(6)]
    prompts += [[*prompts[0], *(rng.randrange(5, 200) for _ in range(9))] for _ in range(3)]
    samples = [Sampled(p, [rng.randrange(5, 200) for _ in range(6)], [None] * 6) for p in prompts for _ in range(8)]
    begin, back, part_of = parts._begin, parts._Beginning.backward, parts._part

    def begun(*arguments: Any) -> Any:
        alive.append(begin(*arguments))
        return alive[-1]

    def done(self: Any) -> None:
        alive.remove(self)
        back(self)

    def looked_at(*arguments: Any) -> Any:
        _, _, _, forest, known, _, _ = arguments
        seen.append((len(forest), len(known), sum(len(one.leaves[0]) for one in alive)))
        return part_of(*arguments)

    monkeypatch.setattr(parts, "WORTH", 1)
    monkeypatch.setattr(parts, "_begin", begun)
    monkeypatch.setattr(parts._Beginning, "backward", done)
    monkeypatch.setattr(parts, "_part", looked_at)
    free_logprobs(trie, samples)[0].square().sum().backward()
    wanted = gradients(trie)
    nodes, (_, computed) = len(pack([sample.needed for sample in samples])), backward_in_parts(trie, samples, 60)
    assert nodes > 400 and computed == nodes and not alive
    torch.testing.assert_close(gradients(trie), wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))
    assert len(seen) > 10 and all(nodes <= 60 and kept == known for nodes, known, kept in seen)
    assert max(known for _, known, _ in seen) > len(root)


def test_nothing_gives_no_part(trie: TrieModel) -> None:
    assert list(in_parts(trie, [], 10)) == []
