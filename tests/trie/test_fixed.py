"""Decoding steps of a fixed shape, as CUDA replays them, against steps of their own shape."""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable, Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mmc.trie import fixed
from mmc.trie.decode import Decoder, Stream
from mmc.trie.fixed import FixedStep
from mmc.trie.model import TrieModel
from tests.trie.test_attention import NAMES, models

STOPS = frozenset([0])


@pytest.fixture(autouse=True)
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fixed, "FIXED_ON", {"cpu"})


def draw(name: object) -> Callable[[int], float]:
    return lambda position: random.Random(f"{name}/{position}").random()


class _Turns:
    """One of six tokens, then two that are forced, and so on."""

    def __init__(self) -> None:
        self.taken = 0

    def allowed(self) -> NDArray[np.int32]:
        return np.arange(4, 10, dtype=np.int32) if self.taken % 3 == 0 else np.array([11], dtype=np.int32)

    def advance(self, token: int) -> None:
        self.taken += 1


def streams(vocabulary: int) -> list[Stream]:
    """Prompts that share beginnings, of ragged lengths; some constrained, so that several tokens are fed at once; some greedy."""
    rng = random.Random(0)
    root = [rng.randrange(4, vocabulary) for _ in range(25)]
    found = []
    for i in range(20):
        prompt = [*root, *(rng.randrange(4, vocabulary) for _ in range(i % 5))]
        matcher = _Turns() if i % 4 == 3 else None
        found.append(Stream(prompt, 6 + i % 7, 0.8 if i % 3 else 0.0, draw(i), matcher))
    return found


def decode(trie: TrieModel, rows: Sequence[Stream], budget: int, weights: Hashable) -> None:
    decoder = Decoder(trie, STOPS, budget, weights=weights)
    decoder.add(rows)
    while decoder:
        decoder.step()


def count_runs(monkeypatch: pytest.MonkeyPatch) -> list[FixedStep]:
    runs: list[FixedStep] = []
    run = FixedStep.run

    def counted(self: FixedStep) -> torch.Tensor:
        runs.append(self)
        return run(self)

    monkeypatch.setattr(FixedStep, "run", counted)
    return runs


@pytest.mark.parametrize("name", NAMES)
def test_steps_of_a_fixed_shape_give_the_same_tokens(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = count_runs(monkeypatch)
    trie = TrieModel(models()[name])
    vocabulary = trie.head.weight.shape[0]
    for budget in (100_000, 150):
        plain, ours = streams(vocabulary), streams(vocabulary)
        decode(trie, plain, budget, None)
        assert not runs
        decode(trie, ours, budget, "weights")
        assert runs
        runs.clear()
        assert [s.ids for s in ours] == [s.ids for s in plain]
        torch.testing.assert_close(
            torch.tensor([x for s in ours for x in s.logprobs]),
            torch.tensor([x for s in plain for x in s.logprobs]),
            rtol=1e-4,
            atol=1e-4,
        )


def test_captured_steps_are_used_again_with_the_same_weights_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = count_runs(monkeypatch)
    trie = TrieModel(models()["llama"])
    vocabulary = trie.head.weight.shape[0]
    seen = []
    for weights in ("a", "a", "b", "a"):
        decode(trie, streams(vocabulary), 100_000, weights)
        seen.append({id(step) for step in runs})
        runs.clear()
    # The first cache has no memory before its prompts came, so these took a step of their own shape.
    assert seen[0] < seen[1] == seen[3] and not seen[0] & seen[2]


def test_a_cache_that_grows_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = count_runs(monkeypatch)
    monkeypatch.setattr(fixed, "LEAST_SLOTS", 32)
    monkeypatch.setattr(fixed, "LEAST_CAPTURED", 32)
    trie = TrieModel(models()["llama"])
    vocabulary = trie.head.weight.shape[0]
    plain, ours = streams(vocabulary), streams(vocabulary)
    decode(trie, plain, 100_000, None)
    decode(trie, ours, 100_000, "weights")
    assert runs and [s.ids for s in ours] == [s.ids for s in plain]


def test_where_nothing_can_be_captured_sampling_goes_on_with_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: FixedStep) -> torch.Tensor:
        raise RuntimeError("operation not permitted when stream is capturing\nand so on")

    monkeypatch.setattr(FixedStep, "run", broken)
    trie = TrieModel(models()["llama"])
    vocabulary = trie.head.weight.shape[0]
    plain, ours = streams(vocabulary), streams(vocabulary)
    decode(trie, plain, 100_000, None)
    with pytest.warns(UserWarning, match="decoding steps cannot be captured here.*stream is capturing"):
        decode(trie, ours, 100_000, "weights")
    assert [s.ids for s in ours] == [s.ids for s in plain] and not fixed.FIXED_ON


@pytest.mark.gpu
@pytest.mark.parametrize("name", NAMES)
def test_replayed_steps_on_a_gpu_give_the_same_tokens(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fixed, "FIXED_ON", {"cuda"})
    runs = count_runs(monkeypatch)
    trie = TrieModel(models()[name].to("cuda"))
    vocabulary = trie.head.weight.shape[0]
    plain, ours = streams(vocabulary), streams(vocabulary)
    decode(trie, plain, 100_000, None)
    decode(trie, ours, 100_000, "weights")
    assert runs and fixed.FIXED_ON and [s.ids for s in ours] == [s.ids for s in plain]
