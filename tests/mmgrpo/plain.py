"""The maths of a training step once more: the papers' definitions in plain loops over recorded runs.

No forest, no packing, no batch, no PEFT. A call is one unpadded sequence through a model that attends in its own
`eager` way; a layer with an adapter is a layer with the weight W + scale B A.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import functional_call
from transformers import PreTrainedModel

from mmc.engine.base import Completion
from mmc.program.trajectory import Call, Trajectory
from mmc.spec.model import MmGrpo


class Key(NamedTuple):
    """Names one call of the runs."""

    example: str
    rollout: int
    module: str
    index: int


class Terms(NamedTuple):
    """What a module's calls are trained with."""

    max_tokens: int
    weight: float = 1.0


@dataclass(frozen=True)
class Scores:
    """Log-probabilities of the free tokens of every call."""

    now: Mapping[Key, Sequence[Tensor]]
    base: Mapping[Key, Sequence[float]]
    """Without any adapter."""
    began: Mapping[Key, Sequence[float]] = field(default_factory=dict)
    """When the step began; of calls that the policy did not sample itself."""


@dataclass
class Result:
    """The loss, and how many tokens met the bounds of clipping and of importance."""

    loss: Tensor
    above: int = 0
    below: int = 0
    capped: int = 0
    corrected: int = 0


# --- log-probabilities ---


def calls_of(runs: Sequence[Trajectory]) -> dict[Key, Call]:
    return {Key(run.example_id, run.rollout, call.module, call.index): call for run in runs for call in run.calls}


def weights_with(model: PreTrainedModel, lora: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """The weights of the layers that an adapter (its tensors by PEFT's names) changes."""
    found = {}
    for name in (name for name in lora if ".lora_A." in name):
        weight = name.removeprefix("base_model.model.").partition(".lora_A.")[0] + ".weight"
        product = lora[name.replace(".lora_A.", ".lora_B.")] @ lora[name]
        found[weight] = model.get_parameter(weight).detach() + scale * product
    return found


def logprobs(model: PreTrainedModel, weights: Mapping[str, Tensor], done: Completion) -> list[Tensor]:
    """Of every token that was sampled by choice, in the distribution it was sampled from."""
    row = torch.tensor([[*done.prompt_ids_T, *done.ids_T]])
    logits = functional_call(model, dict(weights), (), {"input_ids": row, "use_cache": False}).logits[0]
    found = []
    for t, (token, allowed) in enumerate(zip(done.ids_T, done.allowed_T, strict=True)):
        if allowed is None or len(allowed) > 1:
            scores = logits[len(done.prompt_ids_T) + t - 1].double() / done.temperature
            possible = scores if allowed is None else scores[allowed.tolist()]
            found.append(scores[token] - possible.logsumexp(0))
    return found


def sampled_with(done: Completion) -> list[float]:
    """The log-probabilities of the same tokens when they were sampled."""
    pairs = zip(done.logprobs_T, done.allowed_T, strict=True)
    return [logprob for logprob, allowed in pairs if allowed is None or len(allowed) > 1]


# --- rewards, groups, advantages ---


def reward_of(run: Trajectory, call: Call, config: MmGrpo) -> float:
    """The run's; in an interrupted run the format reward of what could not be read, the failure reward of the rest."""
    if run.ending == "done":
        return run.reward
    if call.outputs is not None:
        return config.failure_reward
    return config.format_reward + call.readable * (config.failure_reward - config.format_reward)


Group = list[tuple[list[Key], float]]
"""Its members: their calls and their reward."""


def groups_of(runs: Sequence[Trajectory], config: MmGrpo) -> list[Group]:
    """The k-th calls of one module over the runs of one example; or the runs of one example."""
    groups: dict[tuple[object, ...], Group] = {}
    for run in runs:
        rewards = {key: reward_of(run, call, config) for key, call in calls_of([run]).items()}
        if config.grouping.by == "trajectory":
            member = (list(rewards), sum(rewards.values()) / len(rewards))
            groups.setdefault((run.example_id,), []).append(member)
        else:
            for key, reward in rewards.items():
                groups.setdefault((key.example, key.module, key.index), []).append(([key], reward))
    return list(groups.values())


def advantages_of(groups: Sequence[Group]) -> dict[Key, float]:
    """(reward - mean) / standard deviation, inside each group."""
    found = {}
    for group in groups:
        mean = sum(reward for _, reward in group) / len(group)
        squares = sum((reward - mean) ** 2 for _, reward in group)
        deviation = math.sqrt(squares / (len(group) - 1)) if len(group) > 1 else 0.0
        found |= {key: (reward - mean) / (deviation + 1e-4) for keys, reward in group for key in keys}
    return found


def averaged_over(groups: Sequence[Group], config: MmGrpo) -> list[list[list[Key]]]:
    """What means are taken over: groups of members of calls; `merged` has the runs of each example instead."""
    if config.grouping.by != "merged":
        return [[keys for keys, _ in group] for group in groups]
    examples: dict[str, dict[int, list[Key]]] = {}
    for key in (key for group in groups for keys, _ in group for key in keys):
        examples.setdefault(key.example, {}).setdefault(key.rollout, []).append(key)
    return [list(of_runs.values()) for of_runs in examples.values()]


# --- the loss ---


def plain_loss(runs: Sequence[Trajectory], config: MmGrpo, modules: Mapping[str, Terms], scores: Scores) -> Result:
    """The loss of a step, by the definition of ``config.loss``."""
    calls, groups = calls_of(runs), groups_of(runs, config)
    advantages = advantages_of(groups)
    units = averaged_over(groups, config)
    all_tokens = sum(len(scores.now[key]) for key in advantages)
    result = Result(torch.zeros((), dtype=torch.float64))
    for unit in units:
        for member in unit:
            tokens = sum(len(scores.now[key]) for key in member)
            longest = sum(modules[key.module].max_tokens for key in member)
            for key in member:
                values = _token_losses(key, calls[key].completion, advantages[key], config, scores, result)
                divisor = {
                    "grpo": tokens * len(unit) * len(units),
                    "gspo": tokens * len(unit) * len(units),
                    "dr_grpo": longest * len(unit) * len(units),
                    "dapo": all_tokens,
                    "cispo": all_tokens,
                }[config.loss]
                for value in values:
                    result.loss = result.loss + modules[key.module].weight * value / divisor
    return result


def _token_losses(
    key: Key, done: Completion, advantage: float, config: MmGrpo, scores: Scores, result: Result
) -> list[Tensor]:
    """What each token of a call adds before averaging; counts the bounds it meets in ``result``."""
    now, base, sampled = scores.now[key], scores.base[key], sampled_with(done)
    began = sampled if done.exact else scores.began[key]
    log_ratios = [new - old for new, old in zip(now, began, strict=True)]
    low, high = 1 - config.clip.low, 1 + config.clip.high
    losses = []
    for t, new in enumerate(now):
        ratio = torch.exp(sum(log_ratios) / len(log_ratios) if config.loss == "gspo" else log_ratios[t])
        above = ratio.item() > high and (advantage > 0 or config.loss == "cispo")
        below = ratio.item() < low and advantage < 0 and config.loss != "cispo"
        result.above, result.below = result.above + above, result.below + below
        if config.loss == "cispo":
            gain = min(ratio.item(), high) * advantage * new
        elif above or below:
            gain = torch.tensor((high if above else low) * advantage)
        else:
            gain = ratio * advantage
        surprise = base[t] - new
        kl = torch.exp(surprise) - surprise - 1
        losses.append(config.kl * kl - _importance(t, done.exact, began, sampled, config, result) * gain)
    return losses


def _importance(
    t: int, exact: bool, began: Sequence[float], sampled: Sequence[float], config: MmGrpo, result: Result
) -> float:
    """How much more likely the policy was to sample this token, or its whole completion, than whoever did."""
    if exact:
        return 1.0
    differences = [policy - sampler for policy, sampler in zip(began, sampled, strict=True)]
    weight = math.exp(sum(differences) if config.importance.level == "sequence" else differences[t])
    result.corrected += 1
    result.capped += weight > config.importance.cap
    return min(weight, config.importance.cap)
