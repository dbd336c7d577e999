from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mmc.trie.draw import Pick, draw


def plain(logits: NDArray[np.float32], temperature: float) -> NDArray[np.float64]:
    """The distribution of one row, in float64."""
    scaled = logits.astype(np.float64) / temperature
    weights = np.exp(scaled - scaled.max())
    return weights / weights.sum()


@pytest.mark.parametrize("vocabulary", [5, 256, 1000])
@pytest.mark.parametrize("temperature", [0.3, 1.0, 1.7])
def test_a_draw_inverts_the_cumulative_distribution(vocabulary: int, temperature: float) -> None:
    logits_UV = torch.randn(6, vocabulary, generator=torch.Generator().manual_seed(0)) * 4
    for row in range(6):
        expected = plain(logits_UV[row].numpy(), temperature)
        cumulative = np.concatenate([[0.0], np.cumsum(expected)])
        for uniform in np.linspace(0, 1, 101)[:-1].tolist():
            ((token, logprob),) = draw(logits_UV, [Pick(row, temperature, uniform)])
            assert cumulative[token] - 1e-6 <= uniform <= cumulative[token + 1] + 1e-6
            assert logprob == pytest.approx(np.log(expected[token]), abs=1e-5)
        ((best, logprob),) = draw(logits_UV, [Pick(row, temperature, None)])
        assert best == expected.argmax() and logprob == pytest.approx(np.log(expected.max()), abs=1e-5)


def test_a_token_of_no_weight_is_never_drawn() -> None:
    """Not even at the edges of blocks, where a sum is rounded: logits of minus infinity, and weights that underflow."""
    generator = torch.Generator().manual_seed(1)
    logits_UV = torch.randn(1, 1024, generator=generator)
    logits_UV[0, torch.rand(1024, generator=generator) < 0.5] = -torch.inf
    logits_UV[0, 200:300] = -1e4
    logits_UV[0, 512:768] = -torch.inf
    ends = plain(logits_UV[0].numpy(), 1.0).cumsum()
    at_the_edges = [ends[i] + offset for i in range(255, 1023, 256) for offset in (-1e-7, -1e-9, 0, 1e-9, 1e-7)]
    for uniform in (0.0, *at_the_edges, np.nextafter(1.0, 0.0), 1.0):
        ((token, logprob),) = draw(logits_UV, [Pick(0, 1.0, float(uniform))])
        assert logits_UV[0, token] > -100 and np.isfinite(logprob)


def test_allowed_tokens_share_the_whole_weight() -> None:
    logits_UV = torch.randn(1, 1000, generator=torch.Generator().manual_seed(2))
    allowed = np.array([3, 400, 999], dtype=np.int32)
    expected = plain(logits_UV[0].numpy()[allowed], 0.8)
    drawn = draw(logits_UV, [Pick(0, 0.8, u, allowed) for u in (np.arange(1000) + 0.5) / 1000])
    assert np.bincount([np.flatnonzero(allowed == token)[0] for token, _ in drawn]) == pytest.approx(
        expected * 1000, abs=1.0
    )
    assert dict(drawn) == pytest.approx(dict(zip(allowed.tolist(), np.log(expected).tolist(), strict=True)), abs=1e-5)


def test_draws_made_together_are_those_made_one_by_one() -> None:
    """At the edges of blocks and of tokens too; rows and temperatures mixed, greedy and constrained ones among them."""
    generator = torch.Generator().manual_seed(3)
    logits_UV = torch.randn(5, 700, generator=generator) * 3
    logits_UV[1, 256:512] = -torch.inf
    logits_UV[2, torch.rand(700, generator=generator) < 0.5] = -1e4
    uniforms = [0.0, float(np.nextafter(1.0, 0.0)), *torch.rand(60, generator=generator).tolist()]
    picks = [Pick(row, t, u) for row in range(5) for t in (0.5, 1.0) for u in [None, *uniforms]]
    picks[3::7] = [pick._replace(allowed=np.array([1, 256, 699], dtype=np.int32)) for pick in picks[3::7]]
    expected = [draw(logits_UV, [pick])[0] for pick in picks]
    found = draw(logits_UV, picks)
    assert [token for token, _ in found] == [token for token, _ in expected]
    assert [logprob for _, logprob in found] == pytest.approx([logprob for _, logprob in expected], abs=1e-5)
