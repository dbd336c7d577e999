"""Advantages and losses against plain loops and finite differences."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmc.mmgrpo.advantage import EPSILON, advantages, has_spread
from mmc.mmgrpo.loss import CallSize, LossName, policy_loss, token_weights


@given(st.lists(st.floats(0, 1), min_size=2, max_size=12))
def test_advantages_equal_numpys(rewards: list[float]) -> None:
    array = np.array(rewards)
    expected = (array - array.mean()) / (array.std(ddof=1) + EPSILON)
    np.testing.assert_allclose(advantages(rewards), expected, atol=1e-9)
    np.testing.assert_allclose(advantages(rewards, "none"), array - array.mean(), atol=1e-12)


def test_one_member_or_equal_rewards_carry_no_gradient() -> None:
    assert advantages([0.7]) == [0.0]
    assert not has_spread([0.3, 0.3]) and has_spread([0.3, 0.4])


def plain_loss(name: LossName, groups: list[list[list[tuple[float, float, float, float]]]], max_tokens: int) -> float:
    """Loops over groups, members, tokens; a token is (logprob, old, reference, advantage)."""
    total, tokens = 0.0, sum(len(member) for group in groups for member in group)
    for group in groups:
        for member in group:
            for logprob, old, reference, advantage in member:
                ratio = math.exp(logprob - old)
                value = -min(ratio * advantage, max(0.8, min(1.3, ratio)) * advantage)
                value += 0.1 * (math.exp(reference - logprob) - (reference - logprob) - 1)
                if name == "grpo":
                    total += value / len(member) / len(group) / len(groups)
                elif name == "dr_grpo":
                    total += value / max_tokens / len(group) / len(groups)
                else:
                    total += value / tokens
    return total


def example(seed: int) -> list[list[list[tuple[float, float, float, float]]]]:
    rng = np.random.default_rng(seed)
    groups = []
    for _ in range(3):
        group = []
        for _ in range(int(rng.integers(2, 5))):
            advantage = float(rng.normal())
            count = int(rng.integers(1, 6))
            group.append([(*map(float, -rng.exponential(1, 3)), advantage) for _ in range(count)])
        groups.append(group)
    return groups


def ours(
    name: LossName, groups: list[list[list[tuple[float, float, float, float]]]], logprobs: torch.Tensor
) -> torch.Tensor:
    members = [(group, member) for group in groups for member in group]
    weights = token_weights([CallSize(len(m), 16, len(g)) for g, m in members], len(groups), name)
    flat = torch.tensor([token for _, member in members for token in member])
    per_token = torch.tensor([w for w, (_, member) in zip(weights, members, strict=True) for _ in member])
    return policy_loss(logprobs, flat[:, 1], flat[:, 3], per_token, (0.2, 0.3), (0.1, flat[:, 2])).loss


@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "dapo"])
@pytest.mark.parametrize("seed", range(3))
def test_losses_equal_plain_loops_and_finite_differences(name: LossName, seed: int) -> None:
    groups = example(seed)
    logprobs = torch.tensor([t[0] for g in groups for m in g for t in m], requires_grad=True)
    loss = ours(name, groups, logprobs)
    assert loss.item() == pytest.approx(plain_loss(name, groups, 16), rel=1e-4, abs=1e-5)
    loss.backward()
    step, position = 1e-4, 0
    for g, group in enumerate(groups):
        for m, member in enumerate(group):
            for t, token in enumerate(member):
                sides = []
                for sign in (1, -1):
                    group[m] = [*member[:t], (token[0] + sign * step, *token[1:]), *member[t + 1 :]]
                    sides.append(plain_loss(name, groups, 16))
                group[m] = member
                slope = (sides[0] - sides[1]) / (2 * step)
                assert logprobs.grad is not None
                assert logprobs.grad[position].item() == pytest.approx(slope, rel=1e-2, abs=1e-4), (g, m, t)
                position += 1


def test_clipped_tokens_are_counted() -> None:
    logprobs, old = torch.tensor([0.0, 0.0, 0.0]), torch.tensor([-1.0, 0.0, 1.0])
    result = policy_loss(logprobs, old, torch.tensor([1.0, 1.0, -1.0]), torch.ones(3), (0.2, 0.2))
    assert result.clipped == 2
