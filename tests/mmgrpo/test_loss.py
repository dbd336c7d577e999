"""Advantages and losses against plain loops and finite differences."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmc.mmgrpo.advantage import EPSILON, advantages, has_spread
from mmc.mmgrpo.loss import LOSSES, Batch, LossName, Share, importance, policy_loss, token_weights

Token = tuple[float, float, float, float, float]
"""(log-probability, old, reference, advantage, correction)."""


@given(st.lists(st.lists(st.floats(0, 1), min_size=2, max_size=8), min_size=1, max_size=4))
def test_advantages_equal_numpys(groups: list[list[float]]) -> None:
    arrays = [np.array(rewards) for rewards in groups]
    everything = np.concatenate(arrays)
    expected = {
        "std": [(a - a.mean()) / (a.std(ddof=1) + EPSILON) for a in arrays],
        "batch": [(a - a.mean()) / (everything.std(ddof=1) + EPSILON) for a in arrays],
        "none": [a - a.mean() for a in arrays],
        "leave_one_out": [np.array([a[i] - np.delete(a, i).mean() for i in range(len(a))]) for a in arrays],
    }
    for name, wanted in expected.items():
        for ours, theirs in zip(advantages(groups, name), wanted, strict=True):  # type: ignore[arg-type]
            np.testing.assert_allclose(ours, theirs, atol=1e-9)


@pytest.mark.parametrize("name", ["std", "batch", "none", "leave_one_out"])
def test_one_member_or_equal_rewards_carry_no_gradient(name: str) -> None:
    assert advantages([[0.7], [0.5, 0.5]], name) == [[0.0], [0.0, 0.0]]  # type: ignore[arg-type]
    assert not has_spread([0.3, 0.3]) and has_spread([0.3, 0.4])


def plain_loss(
    name: LossName, groups: list[list[list[Token]]], max_tokens: int, frozen: list[float] | None = None
) -> float:
    """Loops over groups, members, tokens. ``frozen``: ratios that cispo takes as constants."""
    total, tokens, position = 0.0, sum(len(member) for group in groups for member in group), 0
    for group in groups:
        for member in group:
            mean = sum(t[0] - t[1] for t in member) / len(member)
            for logprob, old, reference, advantage, correction in member:
                ratio = math.exp(mean if name == "gspo" else logprob - old)
                if name == "cispo":
                    weight = frozen[position] if frozen is not None else min(1.3, ratio)
                    value = -weight * advantage * logprob
                else:
                    value = -min(ratio * advantage, max(0.8, min(1.3, ratio)) * advantage)
                value = value * correction + 0.1 * (math.exp(reference - logprob) - (reference - logprob) - 1)
                position += 1
                if name in ("grpo", "gspo"):
                    total += value / len(member) / len(group) / len(groups)
                elif name == "dr_grpo":
                    total += value / max_tokens / len(group) / len(groups)
                else:
                    total += value / tokens
    return total


def example(seed: int) -> list[list[list[Token]]]:
    rng = np.random.default_rng(seed)
    groups = []
    for _ in range(3):
        group = []
        for _ in range(int(rng.integers(2, 5))):
            advantage, correction = float(rng.normal()), float(rng.uniform(0.5, 1.5))
            count = int(rng.integers(1, 6))
            group.append([(*map(float, -rng.exponential(1, 3)), advantage, correction) for _ in range(count)])
        groups.append(group)
    return groups


def ours(name: LossName, groups: list[list[list[Token]]], logprobs: torch.Tensor) -> torch.Tensor:
    members = [(group, member) for group in groups for member in group]
    tokens = sum(len(member) for _, member in members)
    weights = token_weights([Share(len(m), 16, len(g)) for g, m in members], len(groups), tokens, name)
    flat = torch.tensor([token for _, member in members for token in member])
    per_token = torch.tensor([w for w, (_, member) in zip(weights, members, strict=True) for _ in member])
    call_F = torch.tensor([c for c, (_, member) in enumerate(members) for _ in member])
    batch = Batch(flat[:, 1], flat[:, 3], per_token, flat[:, 4], call_F)
    return policy_loss(name, logprobs, batch, (0.2, 0.3), (0.1, flat[:, 2])).loss


@pytest.mark.parametrize("name", list(LOSSES))
@pytest.mark.parametrize("seed", range(3))
def test_losses_equal_plain_loops_and_finite_differences(name: LossName, seed: int) -> None:
    groups = example(seed)
    logprobs = torch.tensor([t[0] for g in groups for m in g for t in m], requires_grad=True)
    loss = ours(name, groups, logprobs)
    assert loss.item() == pytest.approx(plain_loss(name, groups, 16), rel=1e-4, abs=1e-5)
    loss.backward()
    frozen = [min(1.3, math.exp(t[0] - t[1])) for g in groups for m in g for t in m]
    step, position = 1e-4, 0
    for g, group in enumerate(groups):
        for m, member in enumerate(group):
            for t, token in enumerate(member):
                sides = []
                for sign in (1, -1):
                    group[m] = [*member[:t], (token[0] + sign * step, *token[1:]), *member[t + 1 :]]
                    sides.append(plain_loss(name, groups, 16, frozen))
                group[m] = member
                slope = (sides[0] - sides[1]) / (2 * step)
                assert logprobs.grad is not None
                assert logprobs.grad[position].item() == pytest.approx(slope, rel=1e-2, abs=1e-4), (g, m, t)
                position += 1


def test_clipped_tokens_are_counted() -> None:
    logprobs, old = torch.tensor([0.0, 0.0, 0.0]), torch.tensor([-1.0, 0.0, 1.0])
    ones, calls = torch.ones(3), torch.arange(3)
    batch = Batch(old, torch.tensor([1.0, 1.0, -1.0]), ones, ones, calls)
    assert policy_loss("grpo", logprobs, batch, (0.2, 0.2)).clipped == 2
    assert policy_loss("cispo", logprobs, batch, (0.2, 0.2)).clipped == 1, "cispo bounds the ratio from above only"


def test_importance_is_the_capped_ratio_of_tokens_or_of_completions() -> None:
    policy, sampler = torch.tensor([-1.0, -2.0, -0.5]), torch.tensor([-2.0, -1.5, -0.5])
    call_F = torch.tensor([0, 0, 1])
    by_token = importance(policy, sampler, call_F, "token", 2.0)
    assert by_token.tolist() == pytest.approx([2.0, math.exp(-0.5), 1.0])
    by_sequence = importance(policy, sampler, call_F, "sequence", 2.0)
    assert by_sequence.tolist() == pytest.approx([math.exp(0.5), math.exp(0.5), 1.0])
