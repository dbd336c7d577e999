"""What a training tells: one line of curves a step, and what should be said aloud."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from mmc.mmgrpo.group import Group
from mmc.mmgrpo.update import UpdateReport
from mmc.program.trajectory import Trajectory, call_identity
from mmc.program.usage import ByModule

UNREADABLE = ("unparsed", "cut")
"""Endings that are failures of format."""


@dataclass(frozen=True)
class ModuleCurve:
    """One module's part in a step."""

    calls: int
    reward: float
    """Mean over its calls of what training gave them, shaping and format reward included."""
    spread: float
    """Mean over its groups of max - min reward."""
    tokens: float
    """Mean length of its completions."""


@dataclass(frozen=True)
class StepReport:
    """One finished step. Rewards and shares are means over its runs or groups."""

    step: int
    steps: int
    reward: float
    spread: float
    """Mean over groups of max - min reward."""
    useful: float
    """Share of groups with spread."""
    failures: float
    """Share of interrupted runs."""
    unreadable: float
    """Share of runs that a completion ended which could not be read, or was cut at the token limit."""
    groups: int
    resampled: int
    """Examples that came in the place of others whose groups had no spread."""
    loss: float
    entropy: float
    kl: float
    clipped: float
    """Share of tokens whose ratio was clipped."""
    grad_norm: float
    drift: float
    """Largest difference of a log-probability between sampling and the first forward of training: how stale, or how
    differently computed, the samples are."""
    learning_rate: float
    sampled: int
    """Tokens sampled; what runs of a tree share counts once."""
    tokens: int
    """Tokens that carried gradient."""
    tokens_packed: int
    """Distinct tokens computed for them."""
    tokens_plain: int
    """Tokens that one sequence at a time would have computed."""
    staleness: int
    """Steps by which the weights that sampled were older than those that were trained."""
    seconds_rollout: float
    """That the step waited for its runs: until they were drawn, or until those drawn ahead were there."""
    seconds_update: float
    seconds: float
    usage: ByModule = field(default_factory=dict)
    """Of all runs of the step: teachers', frozen modules' and judges' calls too, and those of scoring dev."""
    modules: Mapping[str, ModuleCurve] = field(default_factory=dict)
    dev: float | None = None


@dataclass(frozen=True)
class StepFacts:
    """What a report is made from beside runs, groups and the update."""

    step: int
    steps: int
    learning_rate: float
    resampled: int
    tokens_plain: int
    epochs: int
    staleness: int
    seconds_rollout: float
    seconds_update: float
    usage: ByModule = field(default_factory=dict)


def step_report(
    facts: StepFacts, runs: Sequence[Trajectory], groups: Sequence[Group], result: UpdateReport
) -> StepReport:
    """The curves of one step."""
    spreads = [max(g.rewards_C) - min(g.rewards_C) for g in groups] or [0.0]
    tokens = max(1, result.tokens)
    return StepReport(
        step=facts.step + 1,
        steps=facts.steps,
        reward=fmean(t.reward for t in runs),
        spread=fmean(spreads),
        useful=fmean(s > 1e-9 for s in spreads),
        failures=fmean(t.ending != "done" for t in runs),
        unreadable=fmean(t.ending in UNREADABLE for t in runs),
        groups=len(groups),
        resampled=facts.resampled,
        loss=result.loss,
        entropy=result.entropy / tokens,
        kl=result.kl / tokens,
        clipped=result.clipped / tokens / facts.epochs,
        grad_norm=result.grad_norm,
        drift=result.drift,
        learning_rate=facts.learning_rate,
        sampled=sampled_tokens(runs),
        tokens=result.tokens,
        tokens_packed=result.packed,
        tokens_plain=facts.tokens_plain,
        staleness=facts.staleness,
        seconds_rollout=facts.seconds_rollout,
        seconds_update=facts.seconds_update,
        seconds=facts.seconds_rollout + facts.seconds_update,
        usage=facts.usage,
        modules=module_curves(groups),
    )


def module_curves(groups: Sequence[Group]) -> dict[str, ModuleCurve]:
    """The curves of every trained module. In groups of whole runs, calls have their run's reward and spread."""
    calls: dict[str, list[tuple[float, int]]] = defaultdict(list)
    spreads: dict[str, list[float]] = defaultdict(list)
    for group in groups:
        pairs = [(member.reward, call) for member in group.members for call in member.calls]
        for reward, call in pairs:
            calls[call.module].append((reward, len(call.completion.ids_T)))
        for module in dict.fromkeys(call.module for _, call in pairs):
            spreads[module].append(max(group.rewards_C) - min(group.rewards_C))
    return {
        module: ModuleCurve(len(found), fmean(r for r, _ in found), fmean(spreads[module]), fmean(n for _, n in found))
        for module, found in calls.items()
    }


def sampled_tokens(runs: Sequence[Trajectory]) -> int:
    """Tokens that were drawn. Calls that runs of a tree made together count once."""
    drawn: dict[tuple[object, ...], int] = {}
    for run in runs:
        for call in run.calls:
            drawn[call_identity(run, call)] = len(call.completion.ids_T)
    return sum(drawn.values())


def alarm(unreadable: Sequence[float], every: int = 5) -> str | None:
    """What to say when the share of unreadable completions rises: now, against the first steps. ``unreadable`` is by step."""
    if len(unreadable) < 2 * every or len(unreadable) % every:
        return None
    first, now = fmean(unreadable[:every]), fmean(unreadable[-every:])
    if now - first < 0.1:
        return None
    return (
        f"completions that cannot be read rise: {first:.0%} of runs in the first {every} steps, {now:.0%} in the last {every}. "
        "A lower format_reward, `constrain: true`, or a larger max_tokens stops that"
    )
