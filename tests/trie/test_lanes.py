"""Streams in lanes of the cache against the model's own forward, one sequence at a time."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from mmc.trie import attention, cache, decode, lanes
from mmc.trie.cache import TrieCache
from mmc.trie.decode import Decoder, Stream
from mmc.trie.fixed import CacheMemory
from mmc.trie.lanes import Lane, Standing, batches
from mmc.trie.model import TrieModel
from tests.trie.test_attention import NAMES, models
from tests.trie.test_fixed import _Turns, draw

STOPS = frozenset([0])


@pytest.fixture
def early(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Lanes from the start, narrow ones, and not all adjoining; gives how many batches and blocks each forward with some had."""
    found: list[tuple[int, int]] = []
    monkeypatch.setattr(cache, "LEAST_OWN", 2)
    monkeypatch.setattr(cache, "WORTH_PAIRS", 0)
    monkeypatch.setattr(lanes, "LEAST_ROOM", 3)
    monkeypatch.setattr(lanes, "GAP_KEYS", 20)
    monkeypatch.setattr(decode, "SETTLE_EVERY", 2)
    layout = TrieCache.layout

    def counted(
        self: TrieCache, segments: Sequence[cache.Segment]
    ) -> tuple[torch.Tensor, torch.Tensor, attention.Layout]:
        tokens, positions, made = layout(self, segments)
        if made.lanes:
            found.append((len(made.lanes), len(made.blocks(1))))
        return tokens, positions, made

    monkeypatch.setattr(TrieCache, "layout", counted)
    return found


def streams(vocabulary: int, count: int = 20, tokens: int = 24) -> list[Stream]:
    """Prompts of which some share all, some a beginning and some nothing; some constrained, so that several tokens are fed
    at once; some greedy, so that two go the same way.
    """
    rng = random.Random(0)
    root = [rng.randrange(4, vocabulary) for _ in range(9)]
    found = []
    for i in range(count):
        own = [rng.randrange(4, vocabulary) for _ in range(i % 5)]
        prompt = [*own, 7, *own] if i % 3 == 2 else [*root, *own]
        matcher = _Turns() if i % 5 == 3 else None
        found.append(Stream(prompt, tokens - i % 7, 0.0 if i % 6 == 1 else 0.9, draw(i), matcher))
    return found


def run(
    trie: TrieModel, rows: Sequence[Stream], budget: int, late: int = 0, stops: frozenset[int] = STOPS
) -> TrieCache:
    """``late``: streams that join while the others are decoded."""
    decoder = Decoder(trie, stops, budget)
    decoder.add(rows[late:])
    for _ in range(7):
        decoder.step()
    decoder.add(rows[:late])
    while decoder:
        decoder.step()
    decoder._feed()  # which frees what the last ones left
    return decoder._cache


def logprobs(model: PreTrainedModel, stream: Stream) -> torch.Tensor:
    """Of the stream's tokens, by the model's own forward over one sequence."""
    ids = torch.tensor([[*stream.prompt_ids, *stream.ids]])
    with torch.no_grad():
        logits = model(input_ids=ids, use_cache=False).logits[0, len(stream.prompt_ids) - 1 : -1].double()
    rows = []
    for logit, token, allowed in zip(logits, stream.ids, stream.allowed, strict=True):
        chosen = torch.full_like(logit, -torch.inf)
        chosen[slice(None) if allowed is None else torch.from_numpy(allowed.astype(np.int64))] = 0.0
        rows.append(torch.log_softmax(logit / (stream.temperature or 1.0) + chosen, dim=-1)[token])
    return torch.stack(rows)


@pytest.mark.parametrize("copied", [0, 64])
@pytest.mark.parametrize("name", NAMES)
def test_streams_in_lanes_are_sampled_as_the_model_says(
    name: str, copied: int, early: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "MOST_COPIED", copied)
    trie, plain = TrieModel(models()[name]), models()[name]
    plain.set_attn_implementation("eager")
    rows = streams(trie.head.weight.shape[0])
    done = run(trie, rows, 100_000, late=5)
    for stream in rows:
        torch.testing.assert_close(
            torch.tensor(stream.logprobs, dtype=torch.float64), logprobs(plain, stream), rtol=1e-3, atol=1e-3
        )
    assert len(early) > 10 and any(several > 1 for several, _ in early)
    assert any(blocks for _, blocks in early), "what streams share"
    assert not copied or not all(blocks for _, blocks in early), "what is copied needs no block"
    assert done.used == 0 and done.vacant == 0


def test_the_kernel_and_plain_products_give_the_same_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    """The products stand in where PyTorch has no such kernel, and for models that cap their scores."""
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 4, 16), torch.randn(3, 2, 9, 16), torch.randn(3, 2, 9, 16)
    mask = torch.zeros(3, 1, 4, 9).masked_fill(torch.rand(3, 1, 4, 9) < 0.5, -torch.inf)
    mask[1, :, 2] = -torch.inf  # all outside the window
    ours = attention._with_sums(None, 5, None, q, k, v, attn_mask=mask)
    monkeypatch.setattr(attention, "_KERNEL", "no_such_kernel")
    theirs = attention._with_sums(None, 5, None, q, k, v, attn_mask=mask)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)
    weights = torch.exp(q.double() @ k.double().transpose(-1, -2) / 4 + mask)
    torch.testing.assert_close(ours[1].double(), weights.sum(-1).log())


def test_lanes_set_aside_no_more_than_the_budget_once_more(early: list[tuple[int, int]]) -> None:
    trie = TrieModel(models()["llama"])
    wide, narrow = streams(trie.head.weight.shape[0]), streams(trie.head.weight.shape[0])
    run(trie, wide, 100_000)
    assert early
    early.clear()
    done = run(trie, narrow, 40)
    assert [s.ids for s in narrow] == [s.ids for s in wide]
    # What lanes set aside is at most the budget once more; what has more tokens than the budget runs alone.
    assert done.highest < 2 * 40 + 16


def test_streams_that_come_to_share_little_get_lanes_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    widths: list[int] = []
    settle = TrieCache._new_lanes

    def counted(self: TrieCache, asked: Sequence[int]) -> list[Lane]:
        widths.extend(asked)
        return settle(self, asked)

    monkeypatch.setattr(TrieCache, "_new_lanes", counted)
    trie = TrieModel(models()["llama"])
    vocabulary = trie.head.weight.shape[0]
    run(trie, streams(vocabulary, 12, 30), 100_000)
    assert not widths, "answers are short"
    run(trie, streams(vocabulary, 12, 150), 100_000, stops=frozenset())
    assert {128, 256} <= set(widths), "they outgrow their first ones"


def test_a_batch_takes_lanes_along_that_are_cheaper_than_another_batch() -> None:
    def standing(row: int, start: int, width: int, seen: int) -> Standing:
        return Standing(row, Lane(start, width, filled=seen), seen, 0)

    rows = [
        standing(0, 640, 128, 100),
        standing(1, 0, 128, 100),
        standing(2, 1280, 128, 100),
        standing(3, 512, 256, 100),
    ]
    found = [[None if one is None else one.row for one in batch] for batch in batches(rows)]
    assert found == [[1, None, None, None, None, 0, None, None, None, None, 2], [3]]
    rows[0] = standing(0, 768, 128, 120)  # five lanes of 120 keys are more than a batch costs
    found = [[None if one is None else one.row for one in batch] for batch in batches(rows)]
    assert found == [[1], [0, None, None, None, 2], [3]]


def test_a_lane_is_given_back_as_its_path_is_left(early: list[tuple[int, int]]) -> None:
    """Kept prompts stay in a lane; the next stream that goes on from one fills the same slots."""
    found = TrieCache(torch.device("cpu"), CacheMemory(64))
    first, added = found.insert(found.root, [5, 6, 7])
    found.hold(first)
    found.layout(added)
    found.settle([first], 1000)
    lane = first.lane
    assert lane is not None and lane.width == 8 and first.path.tolist() == [lane.start, lane.start + 1, lane.start + 2]
    second, added = found.insert(first, [8])
    found.hold(second)
    found.layout(added)
    assert second.path[-1] == lane.start + 3 and found.used == 4 and found.vacant == 4
    found.release(second)
    assert lane.filled == 3 and found.used == 3
    third, _ = found.insert(first, [9])
    found.hold(third)
    assert third.path.tolist() == second.path.tolist()
    other, _ = found.insert(first, [4])
    assert other.lane is None, "a lane has one path"
    for one in (third, first):
        found.release(one)
    assert found.vacant == 5, "until the last has left"
    other.users = 1
    found.release(other)
    assert found.used == 0 and found.vacant == 0 and not found._lanes


def test_the_real_model_in_lanes(real_model_dir: Path, early: list[tuple[int, int]]) -> None:
    trie = TrieModel(AutoModelForCausalLM.from_pretrained(real_model_dir, dtype=torch.float32).eval())
    plain = AutoModelForCausalLM.from_pretrained(real_model_dir, dtype=torch.float32).eval()
    rows = streams(trie.head.weight.shape[0], 8, 16)
    run(trie, rows, 100_000)
    assert early
    for stream in rows:
        torch.testing.assert_close(
            torch.tensor(stream.logprobs, dtype=torch.float64), logprobs(plain, stream), rtol=1e-3, atol=1e-3
        )
