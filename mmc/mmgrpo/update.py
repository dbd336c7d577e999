"""One optimizer step over the calls of a step's groups, packed into forests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmc.engine.local import LocalEngine
from mmc.mmgrpo.advantage import advantages
from mmc.mmgrpo.group import Group
from mmc.mmgrpo.loss import CallSize, policy_loss, token_weights
from mmc.spec.model import MmGrpo
from mmc.trie.logprobs import Sampled, free_logprobs
from mmc.trie.pack import split_by_budget

FOREST_TOKENS = 6144
"""Most nodes in one forward with gradient; a step with more is cut, and the gradients add up."""


@dataclass(frozen=True)
class TrainingCall:
    """One sampled completion with everything its loss needs."""

    adapter: str
    sampled: Sampled
    old_F: Sequence[float]
    advantage: float
    weight: float


@dataclass
class UpdateReport:
    """Sums and means over one update, for the curves."""

    loss: float = 0.0
    tokens: int = 0
    packed: int = 0
    entropy: float = 0.0
    kl: float = 0.0
    clipped: float = 0.0
    grad_norm: float = 0.0
    drift: float = 0.0
    """Largest difference of a log-probability between sampling and the first forward of training."""


def training_calls(
    groups: Sequence[Group], config: MmGrpo, adapters: Mapping[str, str], max_tokens: Mapping[str, int]
) -> list[TrainingCall]:
    """The calls of ``groups`` that carry gradient. ``adapters`` and ``max_tokens`` are by module."""
    chosen: list[tuple[Group, Sampled, list[float], float]] = []
    for group in groups:
        for member, advantage in zip(group.members, advantages(group.rewards_C, config.normalize), strict=True):
            done = member.call.completion
            sampled = Sampled(done.prompt_ids_T, done.ids_T, done.allowed_T, done.temperature)
            free = sampled.free_T
            if free:
                chosen.append((group, sampled, [done.logprobs_T[t] for t in free], advantage))
    sizes = [CallSize(len(old), max_tokens[group.module], len(group.members)) for group, _, old, _ in chosen]
    weights = token_weights(sizes, len(groups), config.loss)
    return [
        TrainingCall(adapters[group.module], sampled, old, advantage, weight)
        for (group, sampled, old, advantage), weight in zip(chosen, weights, strict=True)
        if advantage or config.kl
    ]


def update(
    engine: LocalEngine, optimizer: torch.optim.Optimizer, calls: Sequence[TrainingCall], config: MmGrpo
) -> UpdateReport:
    """``inner_epochs`` optimizer steps over ``calls``."""
    report = UpdateReport()
    if not calls:
        return report
    for epoch in range(config.inner_epochs):
        optimizer.zero_grad(set_to_none=True)
        report.loss = 0.0
        for adapter in dict.fromkeys(c.adapter for c in calls):
            accumulate(engine, adapter, [c for c in calls if c.adapter == adapter], config, report, first=epoch == 0)
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        report.grad_norm = float(torch.nn.utils.clip_grad_norm_(parameters, config.max_grad_norm))
        optimizer.step()
    return report


def accumulate(
    engine: LocalEngine,
    adapter: str,
    calls: Sequence[TrainingCall],
    config: MmGrpo,
    report: UpdateReport,
    first: bool = True,
) -> None:
    """Adds the gradient of the loss of ``calls`` to the adapter's tensors, a bounded forest at a time."""
    for part in split_by_budget([c.sampled.needed for c in calls], FOREST_TOKENS):
        chosen = [calls[i] for i in part]
        samples = [c.sampled for c in chosen]
        reference = _reference(engine, samples) if config.kl else None
        with engine.adapters.active(adapter, train=True):
            logprobs_F, entropies_F, packed = free_logprobs(engine.trie, samples)
            flat = _flatten(chosen, logprobs_F.device)
            result = policy_loss(logprobs_F, *flat, (config.clip.low, config.clip.high), (config.kl, reference))
            result.loss.backward()  # type: ignore[no-untyped-call]
        report.loss += result.loss.item()
        if first:
            report.tokens += len(logprobs_F)
            report.packed += packed
            report.entropy += entropies_F.sum().item()
            report.kl += result.kl
            report.drift = max(report.drift, (logprobs_F.detach() - flat[0]).abs().max().item())
        report.clipped += result.clipped


def _reference(engine: LocalEngine, samples: Sequence[Sampled]) -> Tensor:
    with torch.no_grad(), engine.adapters.active(None):
        return free_logprobs(engine.trie, samples)[0]


def _flatten(calls: Sequence[TrainingCall], device: Any) -> tuple[Tensor, Tensor, Tensor]:
    """(old log-probabilities, advantages, weights), each (F,)."""
    counts = torch.tensor([len(c.old_F) for c in calls])
    per_call = torch.tensor([[c.advantage, c.weight] for c in calls]).repeat_interleave(counts, dim=0).to(device)
    old = torch.tensor([value for c in calls for value in c.old_F], device=device)
    return old, per_call[:, 0], per_call[:, 1]
