"""The policy-gradient loss, as a pure function of log-probabilities.

Everything is flat: F free tokens (sampled by choice; forced ones carry no gradient and do not count), ``call_F`` the call
each belongs to. How tokens are averaged is a weight a token, computed once for a whole step: so a step may be cut into
parts whose losses simply add up.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

LossName = Literal["grpo", "dr_grpo", "dapo"]


@dataclass(frozen=True)
class CallSize:
    """What a token's weight depends on: its call's free tokens, its module's limit, the size of its group."""

    tokens: int
    max_tokens: int
    group_members: int


def _grpo(call: CallSize, groups: int, tokens: int) -> float:
    """Mean over tokens, then members, then groups (the paper, equation 2)."""
    return 1.0 / (call.tokens * call.group_members * groups)


def _dr_grpo(call: CallSize, groups: int, tokens: int) -> float:
    """Like grpo, but a token counts the same in short and long completions (arXiv 2503.20783)."""
    return 1.0 / (call.max_tokens * call.group_members * groups)


def _dapo(call: CallSize, groups: int, tokens: int) -> float:
    """Mean over all tokens of the step (arXiv 2503.14476)."""
    return 1.0 / tokens


WEIGHTS: Mapping[LossName, Callable[[CallSize, int, int], float]] = {"grpo": _grpo, "dr_grpo": _dr_grpo, "dapo": _dapo}
"""Loss name -> weight of one token of a call. To add a loss, add its weight."""


def token_weights(calls: Sequence[CallSize], groups: int, loss: LossName) -> list[float]:
    """The weight of a token of each call."""
    tokens = sum(c.tokens for c in calls)
    return [WEIGHTS[loss](call, groups, tokens) for call in calls]


@dataclass(frozen=True)
class PolicyLoss:
    """The loss, and sums over the tokens for the curves."""

    loss: Tensor
    clipped: float
    """Tokens whose ratio was clipped."""
    kl: float
    """Sum of the KL estimates."""


def policy_loss(
    logprobs_F: Tensor,
    old_F: Tensor,
    advantages_F: Tensor,
    weights_F: Tensor,
    clip: tuple[float, float],
    kl: tuple[float, Tensor | None] = (0.0, None),
) -> PolicyLoss:
    """Weighted sum over tokens of -min(w A, clip(w, 1 - low, 1 + high) A) + beta KL.

    ``old_F`` are the log-probabilities the tokens were sampled with; ``clip`` is (low, high); ``kl`` is (beta,
    log-probabilities of the reference). KL is estimated as exp(d) - d - 1 with d = reference - policy.
    """
    ratio = torch.exp(logprobs_F - old_F)
    bounded = ratio.clamp(1 - clip[0], 1 + clip[1])
    per_token = -torch.minimum(ratio * advantages_F, bounded * advantages_F)
    clipped = ((bounded * advantages_F) < (ratio * advantages_F)).sum().item()
    beta, reference_F = kl
    estimate = 0.0
    if beta and reference_F is not None:
        difference = reference_F - logprobs_F
        kl_F = torch.exp(difference) - difference - 1
        estimate = kl_F.sum().item()
        per_token = per_token + beta * kl_F
    return PolicyLoss((per_token * weights_F).sum(), float(clipped), estimate)
