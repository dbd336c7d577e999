"""The optimizer steps over the calls of a step's groups, packed into forests."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from mmc.engine.local import LocalEngine
from mmc.mmgrpo.advantage import advantages, has_spread
from mmc.mmgrpo.group import Group, Member
from mmc.mmgrpo.loss import Batch, Share, importance, policy_loss, token_weights
from mmc.program.trajectory import Call
from mmc.spec.model import MmGrpo, Spec, Training
from mmc.trie.logprobs import Sampled
from mmc.trie.parts import in_parts

Skipped = Literal["no_spread", "zero_advantage", "forced"]
"""Why a call in a group is not computed: all rewards equal; its reward the group's mean; no token that was free."""


@dataclass(frozen=True)
class ModuleTerms:
    """What one module's calls are trained with."""

    adapter: str
    max_tokens: int
    weight: float = 1.0
    """In the loss."""


def module_terms(spec: Spec, names: Mapping[str, str]) -> dict[str, ModuleTerms]:
    """What each trained module's calls are trained with. ``names``: module -> its adapter."""
    found = {}
    for module, adapter in names.items():
        declared = spec.modules[module]
        weight = declared.train.weight if isinstance(declared.train, Training) else 1.0
        found[module] = ModuleTerms(adapter, declared.max_tokens, weight)
    return found


@dataclass
class TrainingCall:
    """One sampled completion with everything its loss needs. F are its free tokens."""

    adapter: str
    sampled: Sampled
    sampler_F: Sequence[float]
    """Log-probabilities it was sampled with."""
    advantage: float
    weight: float
    exact: bool = True
    """Whether ``sampler_F`` are the policy's own log-probabilities, as training computes them."""
    own: bool = True
    """Whether the trained policy sampled it, not a teacher."""
    old_F: Sequence[float] | None = None
    """Log-probabilities under the policy before the step's first update; found then for calls that are not exact."""


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


Reduce = Callable[[Sequence[Tensor]], None]
"""Called with all trained tensors between the gradient and the optimizer's step: adds up the gradients of several workers."""


def alone(parameters: Sequence[Tensor]) -> None:
    """The gradient is whole: nobody else has a part of the batch."""


def training_calls(groups: Sequence[Group], config: MmGrpo, modules: Mapping[str, ModuleTerms]) -> list[TrainingCall]:
    """The calls of ``groups`` that carry gradient.

    Groups without spread count in the means, as in TRL, but nothing of them is computed unless a KL penalty wants it.
    """
    chosen: list[tuple[Group, Member, Call, Sampled, float]] = []
    found = advantages([group.rewards_C for group in groups], config.normalize)
    for group, advantages_C in zip(groups, found, strict=True):
        for member, advantage in zip(group.members, advantages_C, strict=True):
            for call in member.calls:
                sampled = sampled_of(call)
                if sampled.free_T:
                    chosen.append((group, member, call, sampled, advantage))
    counts = [len(sampled.free_T) for *_, sampled, _ in chosen]
    limits = [modules[call.module].max_tokens for _, _, call, _, _ in chosen]
    by_call = config.grouping.by == "call"
    shares = _by_call(chosen, counts, limits) if by_call else _by_run(chosen, counts, limits)
    units = len(groups) if by_call else len({group.example_id for group, *_ in chosen})
    weights = token_weights(shares, max(1, units), max(1, sum(counts)), config.loss)
    return [
        _training_call(member, call, sampled, advantage, weight, modules[call.module])
        for (group, member, call, sampled, advantage), weight in zip(chosen, weights, strict=True)
        if without_gradient(group, advantage, config) is None
    ]


def sampled_of(call: Call) -> Sampled:
    """A call's completion as training takes it."""
    done = call.completion
    return Sampled(done.prompt_ids_T, done.ids_T, done.allowed_T, done.temperature)


def without_gradient(group: Group, advantage: float, config: MmGrpo) -> Skipped | None:
    """Why a member of ``group`` with this advantage carries no gradient; None when it does, be it for the KL penalty alone."""
    if config.kl:
        return None
    if not has_spread(group.rewards_C):
        return "no_spread"
    return None if advantage else "zero_advantage"


Chosen = Sequence[tuple[Group, Member, Call, Sampled, float]]


def _by_call(chosen: Chosen, counts: Sequence[int], limits: Sequence[int]) -> list[Share]:
    """Every member of a group counts the same."""
    return [
        Share(count, limit, len(group.members))
        for (group, *_), count, limit in zip(chosen, counts, limits, strict=True)
    ]


def _by_run(chosen: Chosen, counts: Sequence[int], limits: Sequence[int]) -> list[Share]:
    """Every run of an example counts the same, however many calls it made."""
    tokens: Counter[tuple[str, int]] = Counter()
    longest: Counter[tuple[str, int]] = Counter()
    runs: dict[str, set[tuple[str, int]]] = defaultdict(set)
    for (group, member, *_), count, limit in zip(chosen, counts, limits, strict=True):
        tokens[member.run] += count
        longest[member.run] += limit
        runs[group.example_id].add(member.run)
    return [Share(tokens[member.run], longest[member.run], len(runs[group.example_id])) for group, member, *_ in chosen]


def _training_call(
    member: Member, call: Call, sampled: Sampled, advantage: float, weight: float, terms: ModuleTerms
) -> TrainingCall:
    done, own = call.completion, member.run[1] >= 0
    sampler_F = [done.logprobs_T[t] for t in sampled.free_T]
    old_F = sampler_F if done.exact else None
    return TrainingCall(terms.adapter, sampled, sampler_F, advantage, weight * terms.weight, done.exact, own, old_F)


def update(
    engine: LocalEngine,
    optimizer: torch.optim.Optimizer,
    calls: Sequence[TrainingCall],
    config: MmGrpo,
    reduce: Reduce = alone,
) -> UpdateReport:
    """``inner_epochs`` optimizer steps over ``calls``, whose weights are those of the whole batch."""
    report = UpdateReport()
    if not calls and reduce is alone:
        return report
    for epoch in range(config.inner_epochs):
        optimizer.zero_grad(set_to_none=True)
        report.loss = 0.0
        for adapter in dict.fromkeys(c.adapter for c in calls):
            accumulate(engine, adapter, [c for c in calls if c.adapter == adapter], config, report, first=epoch == 0)
        report.grad_norm = step(optimizer, config.max_grad_norm, reduce)
    return report


def step(optimizer: torch.optim.Optimizer, max_grad_norm: float, reduce: Reduce = alone) -> float:
    """One step of the optimizer; the norm of the gradient before it was shortened."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    reduce(parameters)
    norm = float(torch.nn.utils.clip_grad_norm_(parameters, max_grad_norm))
    optimizer.step()
    return norm


def accumulate(
    engine: LocalEngine,
    adapter: str,
    calls: Sequence[TrainingCall],
    config: MmGrpo,
    report: UpdateReport,
    first: bool = True,
) -> None:
    """Adds the gradient of the loss of ``calls`` to the adapter's tensors, a bounded forest at a time."""
    reference = _reference(engine, calls, config) if config.kl else {}
    with engine.adapters.active(adapter, train=True):
        for part in in_parts(engine.lm, [c.sampled for c in calls], config.forest_tokens):
            chosen, logprobs_F = [calls[i] for i in part.members], part.logprobs_F
            if first:
                _remember(chosen, logprobs_F.detach())
            batch = _flatten(chosen, config, logprobs_F.device)
            kl = (config.kl, torch.cat([reference[i] for i in part.members]) if config.kl else None)
            result = policy_loss(config.loss, logprobs_F, batch, (config.clip.low, config.clip.high), kl)
            result.loss.backward()  # type: ignore[no-untyped-call]
            report.loss += result.loss.item()
            if first:
                drift = _drift(chosen, logprobs_F.detach())
                report.tokens += len(logprobs_F)
                report.packed += part.computed
                report.entropy += part.entropies_F.sum().item()
                report.kl += result.kl
                report.drift = max(report.drift, drift)
            report.clipped += result.clipped


def _by_calls(calls: Sequence[TrainingCall], values_F: Tensor) -> list[Tensor]:
    """The values of each call."""
    return list(torch.split(values_F.cpu(), [len(c.sampler_F) for c in calls]))


def _remember(calls: Sequence[TrainingCall], logprobs_F: Tensor) -> None:
    """Keeps the policy's own log-probabilities of tokens that somebody else sampled."""
    for call, own_F in zip(calls, _by_calls(calls, logprobs_F), strict=True):
        if not call.exact:
            call.old_F = own_F.tolist()


def _drift(calls: Sequence[TrainingCall], logprobs_F: Tensor) -> float:
    pairs = zip(calls, _by_calls(calls, logprobs_F), strict=True)
    return max((float((own_F - torch.tensor(c.sampler_F)).abs().max()) for c, own_F in pairs if c.own), default=0.0)


def _reference(engine: LocalEngine, calls: Sequence[TrainingCall], config: MmGrpo) -> dict[int, Tensor]:
    """Log-probabilities of each call's free tokens without an adapter."""
    found: dict[int, Tensor] = {}
    with torch.no_grad(), engine.adapters.active(None):
        for part in in_parts(engine.lm, [c.sampled for c in calls], config.forest_tokens):
            counts = [len(calls[i].sampler_F) for i in part.members]
            found.update(zip(part.members, torch.split(part.logprobs_F, counts), strict=True))
    return found


def _flatten(calls: Sequence[TrainingCall], config: MmGrpo, device: Any) -> Batch:
    counts = torch.tensor([len(c.sampler_F) for c in calls])
    per_call = torch.tensor([[c.advantage, c.weight, float(c.exact)] for c in calls])
    advantage_F, weight_F, exact_F = per_call.repeat_interleave(counts, dim=0).to(device).unbind(dim=1)
    old_F = torch.tensor([value for c in calls for value in c.old_F or ()], device=device)
    call_F = torch.arange(len(calls)).repeat_interleave(counts).to(device)
    correction_F = torch.ones_like(old_F)
    if not all(c.exact for c in calls):
        sampler_F = torch.tensor([value for c in calls for value in c.sampler_F], device=device)
        others_F = importance(old_F, sampler_F, call_F, config.importance.level, config.importance.cap)
        correction_F = torch.where(exact_F > 0, correction_F, others_F)
    return Batch(old_F, advantage_F, weight_F, correction_F, call_F)
