from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, PreTrainedModel

from mmc.trie.cache import TrieCache
from mmc.trie.decode import Decoder, Stream
from mmc.trie.fixed import CacheMemory
from mmc.trie.logprobs import Sampled, free_logprobs
from mmc.trie.model import TrieModel

STOPS = frozenset([0])


@pytest.fixture(scope="module")
def trie(tiny_model_dir: Path) -> TrieModel:
    return TrieModel(AutoModelForCausalLM.from_pretrained(tiny_model_dir).eval())


@pytest.fixture(scope="module")
def plain(tiny_model_dir: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(tiny_model_dir).eval()


def draw(name: object) -> Callable[[int], float]:
    return lambda position: random.Random(f"{name}/{position}").random()


def prompts(count: int, seed: int = 0) -> list[list[int]]:
    rng = random.Random(seed)
    root = [rng.randrange(4, 200) for _ in range(20)]
    return [root + [rng.randrange(4, 200) for _ in range(rng.randint(1, 6))] for _ in range(count)]


def decode(trie: TrieModel, streams: Sequence[Stream], budget: int = 100_000) -> Decoder:
    decoder = Decoder(trie, STOPS, budget)
    decoder.add(streams)
    while decoder:
        decoder.step()
    return decoder


def test_greedy_equals_generate(trie: TrieModel, plain: PreTrainedModel) -> None:
    streams = [Stream(p, 12, 0.0, draw("x")) for p in prompts(5)]
    decode(trie, streams)
    for stream in streams:
        row = torch.tensor([stream.prompt_ids])
        out = plain.generate(row, attention_mask=torch.ones_like(row), max_new_tokens=12, do_sample=False)
        assert out[0, len(stream.prompt_ids) :].tolist() == stream.ids


def sample(trie: TrieModel, budget: int, order: Sequence[int]) -> list[Stream]:
    rows = prompts(6)
    streams = [Stream(rows[i % 6], 10, 1.0, draw(i)) for i in range(24)]
    decode(trie, [streams[i] for i in order], budget)
    return streams


def test_samples_depend_neither_on_the_batch_nor_on_the_order(trie: TrieModel) -> None:
    whole = sample(trie, 100_000, range(24))
    backwards = sample(trie, 60, range(23, -1, -1))
    assert [s.ids for s in whole] == [s.ids for s in backwards]


def test_shared_prefixes_are_computed_once(trie: TrieModel) -> None:
    prompt = prompts(1)[0]
    one = decode(trie, [Stream(prompt, 8, 0.0, draw(0))])
    many = decode(trie, [Stream(prompt, 8, 0.0, draw(i)) for i in range(10)])
    assert many.forwarded == one.forwarded


def test_the_cache_is_empty_when_all_streams_have_left(trie: TrieModel) -> None:
    decoder = decode(trie, [Stream(p, 6, 1.0, draw(i)) for i, p in enumerate(prompts(9) * 2)], budget=80)
    decoder._feed()
    assert decoder._cache.used == 0


def test_a_step_over_all_that_is_cached_gathers_nothing() -> None:
    """A step that sees a part of it gathers that part."""
    cache = TrieCache(torch.device("cpu"), CacheMemory(16))
    stored = torch.arange(5.0)[:, None, None]
    for tokens, seen in (([1, 2, 3], None), ([9, 8], [3, 4])):
        end, added = cache.insert(cache.root, tokens)
        cache.hold(end)
        _, _, layout = cache.layout(added)
        (block,) = layout.blocks(1)
        assert (None if block.keys_BK is None else block.keys_BK[block.mask_BRK.any(1)].tolist()) == seen
        rows = stored[list(range(cache.highest + 1 - len(tokens), cache.highest + 1))]
        keys, _ = cache.extend(0, rows, rows)
        assert torch.equal(keys, stored[: cache.highest + 1]) and block.mask_BRK.shape[2] == (32 if seen else len(keys))


def test_kept_prompts_are_not_computed_again_until_others_need_the_room(trie: TrieModel) -> None:
    def drawn(decoder: Decoder, chosen: Sequence[Sequence[int]]) -> tuple[list[list[int]], int]:
        streams, before = [Stream(p, 5, 1.0, draw(i)) for i, p in enumerate(chosen)], decoder.forwarded
        decoder.add(streams)
        while decoder:
            decoder.step()
        return [s.ids for s in streams], decoder.forwarded - before

    rows = prompts(6)
    longer = [[*row, 9, 8, 7] for row in rows]
    decoder = Decoder(trie, STOPS, 10_000, keep=True)
    first, computed = drawn(decoder, rows)
    again, less = drawn(decoder, rows)
    assert again == first and less <= 6 * 5 < computed
    found, extended = drawn(decoder, longer)
    assert found == drawn(Decoder(trie, STOPS, 10_000), longer)[0] and extended <= 6 * (3 + 5)

    budget = max(map(len, rows)) + 20
    small = Decoder(trie, STOPS, budget, keep=True)
    for _ in range(2):
        for row in rows:
            drawn(small, [row])
            assert small._cache.used <= budget
    assert drawn(small, rows)[0] == first


def test_sampling_logprobs_equal_training_logprobs(trie: TrieModel) -> None:
    streams = sample(trie, 100_000, range(24))
    samples = [Sampled(s.prompt_ids, s.ids, s.allowed) for s in streams]
    logprobs, _, _ = free_logprobs(trie, samples)
    torch.testing.assert_close(logprobs, torch.tensor([x for s in streams for x in s.logprobs]), rtol=1e-3, atol=1e-4)


class _Even:
    """Allows even tokens; after three, the end alone."""

    def __init__(self) -> None:
        self.taken = 0

    def allowed(self) -> NDArray[np.int32]:
        return np.arange(4, 40, 2, dtype=np.int32) if self.taken < 3 else np.array([0], dtype=np.int32)

    def advance(self, token: int) -> None:
        self.taken += 1


def test_a_constraint_is_followed_and_forced_tokens_cost_no_step(trie: TrieModel) -> None:
    streams = [Stream(p, 9, 1.0, draw(i), _Even()) for i, p in enumerate(prompts(4))]
    decoder = Decoder(trie, STOPS, 10_000)
    decoder.add(streams)
    steps = 0
    while decoder:
        decoder.step()
        steps += 1
    assert steps == 3
    for stream in streams:
        assert stream.finish == "stop" and len(stream.ids) == 4 and stream.ids[-1] == 0
        assert all(t % 2 == 0 for t in stream.ids)
        assert stream.logprobs[-1] == 0.0
    logprobs, _, _ = free_logprobs(trie, [Sampled(s.prompt_ids, s.ids, s.allowed) for s in streams])
    expected = torch.tensor([x for s in streams for x in s.logprobs[:-1]])
    torch.testing.assert_close(logprobs, expected, rtol=1e-3, atol=1e-4)


def test_the_empirical_distribution_is_the_models(trie: TrieModel, plain: PreTrainedModel) -> None:
    prompt = prompts(1)[0]
    streams = [Stream(prompt, 1, 1.0, draw(i)) for i in range(4000)]
    decode(trie, streams, budget=10**6)
    counts = np.bincount([s.ids[0] for s in streams], minlength=260) / 4000
    with torch.no_grad():
        expected = torch.softmax(plain(torch.tensor([prompt])).logits[0, -1], dim=-1).numpy()
    assert np.abs(counts - expected[:260]).sum() < 0.25
