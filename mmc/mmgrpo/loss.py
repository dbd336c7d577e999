"""The policy-gradient losses, as pure functions of log-probabilities.

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

LossName = Literal["grpo", "dr_grpo", "dapo", "gspo", "cispo"]


@dataclass(frozen=True)
class Share:
    """What a token's weight depends on: of the call (or the run, where runs count the same) that it belongs to."""

    tokens: int
    """Its free tokens."""
    max_tokens: int
    """Its limit of tokens."""
    members: int
    """The size of its group."""


def _mean(share: Share, groups: int, tokens: int) -> float:
    """Mean over tokens, then members, then groups (the paper, equation 2)."""
    return 1.0 / (share.tokens * share.members * groups)


def _by_limit(share: Share, groups: int, tokens: int) -> float:
    """As the mean, but a token counts the same in short and long completions (arXiv 2503.20783)."""
    return 1.0 / (share.max_tokens * share.members * groups)


def _all_tokens(share: Share, groups: int, tokens: int) -> float:
    """Mean over all tokens of the step (arXiv 2503.14476)."""
    return 1.0 / tokens


def _clipped(
    ratio_F: Tensor, advantages_F: Tensor, logprobs_F: Tensor, low: float, high: float
) -> tuple[Tensor, Tensor]:
    """min(w A, clip(w) A); where it is clipped."""
    whole, bounded = ratio_F * advantages_F, ratio_F.clamp(1 - low, 1 + high) * advantages_F
    return torch.minimum(whole, bounded), bounded < whole


def _weighted(
    ratio_F: Tensor, advantages_F: Tensor, logprobs_F: Tensor, low: float, high: float
) -> tuple[Tensor, Tensor]:
    """The ratio, cut at 1 + high, as a constant weight of A log p (arXiv 2506.13585)."""
    weight_F = ratio_F.detach().clamp(max=1 + high)
    return weight_F * advantages_F * logprobs_F, ratio_F.detach() > 1 + high


@dataclass(frozen=True)
class Loss:
    """How tokens are averaged, over what the ratio is taken, and what is made of it."""

    weight: Callable[[Share, int, int], float]
    objective: Callable[[Tensor, Tensor, Tensor, float, float], tuple[Tensor, Tensor]] = _clipped
    sequence: bool = False
    """Whether the ratio is the geometric mean over a completion (arXiv 2507.18071)."""


LOSSES: Mapping[LossName, Loss] = {
    "grpo": Loss(_mean),
    "dr_grpo": Loss(_by_limit),
    "dapo": Loss(_all_tokens),
    "gspo": Loss(_mean, sequence=True),
    "cispo": Loss(_all_tokens, _weighted),
}
"""Name in the spec -> loss. To add one, add it here and to its name's type."""


def token_weights(shares: Sequence[Share], groups: int, tokens: int, loss: LossName) -> list[float]:
    """The weight of a token of each call; ``tokens`` are all free tokens of the step."""
    return [LOSSES[loss].weight(share, groups, tokens) for share in shares]


@dataclass(frozen=True)
class Batch:
    """F tokens of C calls. ``old_F``: their log-probabilities under the policy before the step's first update; ``weights_F``
    how much each counts, ``correction_F`` the importance of its objective, ``call_F`` its call, 0 to C - 1, in order.
    """

    old_F: Tensor
    advantages_F: Tensor
    weights_F: Tensor
    correction_F: Tensor
    call_F: Tensor


@dataclass(frozen=True)
class PolicyLoss:
    """The loss, and sums over the tokens for the curves."""

    loss: Tensor
    clipped: float
    """Tokens whose ratio was clipped."""
    kl: float
    """Sum of the KL estimates."""


def policy_loss(
    name: LossName,
    logprobs_F: Tensor,
    batch: Batch,
    clip: tuple[float, float],
    kl: tuple[float, Tensor | None] = (0.0, None),
) -> PolicyLoss:
    """Weighted sum over tokens of -correction x objective + beta KL.

    ``clip`` is (low, high); ``kl`` is (beta, log-probabilities of the reference). KL is estimated as exp(d) - d - 1 with
    d = reference - policy.
    """
    log_ratio_F = logprobs_F - batch.old_F
    if LOSSES[name].sequence:
        log_ratio_F = mean_by_call(log_ratio_F, batch.call_F)
    ratio_F = torch.exp(log_ratio_F)
    objective_F, clipped_F = LOSSES[name].objective(ratio_F, batch.advantages_F, logprobs_F, *clip)
    per_token = -objective_F * batch.correction_F
    beta, reference_F = kl
    estimate = 0.0
    if beta and reference_F is not None:
        difference = reference_F - logprobs_F
        kl_F = torch.exp(difference) - difference - 1
        estimate = kl_F.sum().item()
        per_token = per_token + beta * kl_F
    return PolicyLoss((per_token * batch.weights_F).sum(), float(clipped_F.sum().item()), estimate)


def mean_by_call(values_F: Tensor, call_F: Tensor) -> Tensor:
    """The mean over each call's tokens, at every one of them."""
    return sum_by_call(values_F, call_F) / sum_by_call(torch.ones_like(values_F), call_F)


def sum_by_call(values_F: Tensor, call_F: Tensor) -> Tensor:
    """The sum over each call's tokens, at every one of them."""
    calls = int(call_F.max()) + 1 if len(call_F) else 0
    return torch.zeros(calls, dtype=values_F.dtype, device=values_F.device).index_add(0, call_F, values_F)[call_F]


def importance(policy_F: Tensor, sampler_F: Tensor, call_F: Tensor, level: str, cap: float) -> Tensor:
    """min(policy / sampler, cap) of tokens that somebody else sampled; of whole completions for level ``sequence``."""
    log_ratio_F = policy_F - sampler_F
    if level == "sequence":
        log_ratio_F = sum_by_call(log_ratio_F, call_F)
    return torch.exp(log_ratio_F).clamp(max=cap).detach()
