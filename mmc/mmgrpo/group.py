"""Groups: which calls are compared with each other, and with what reward (section 3 of the paper).

Prompts inside a group may differ: what came before a call differs from run to run. In a tree of runs they are equal.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from mmc.data import Example
from mmc.engine.base import seed_of
from mmc.metric import Metric
from mmc.program.graph import Program
from mmc.program.trajectory import Call, Trajectory
from mmc.spec.model import Grouping

Run = tuple[str, int]
"""(example id, rollout)."""


@dataclass(frozen=True)
class Member:
    """One thing with one reward: a call, or all trained calls of a run. ``run`` says whose."""

    calls: tuple[Call, ...]
    reward: float
    run: Run


@dataclass(frozen=True)
class Group:
    """The members of one (example, module, invocation index); of one example when whole runs are compared."""

    example_id: str
    module: str
    index: int
    members: tuple[Member, ...]

    @property
    def rewards_C(self) -> list[float]:
        return [m.reward for m in self.members]


PAPER = Grouping()
"""As in the paper: by module and invocation index; groups may be ragged."""

Shaping = Callable[[Call, str], float]
"""(call, example id) -> what training adds to the call's reward."""


@dataclass(frozen=True)
class Rewards:
    """What calls get. Interrupted runs: ``format`` for the call that could not be read, ``failure`` for the others."""

    failure: float = 0.0
    format: float = 0.0
    shaping: Mapping[str, Shaping] = field(default_factory=dict)
    """By module."""


def shaping_of(program: Program, examples: Sequence[Example]) -> dict[str, Shaping]:
    """Module -> what its calls get beside the run's reward, for runs on ``examples``."""
    rows = {example.id: example.row for example in examples}

    def shape(parts: Sequence[tuple[float, Metric]], call: Call, example_id: str) -> float:
        known = {**call.inputs, **(call.outputs or {})}
        return sum(weight * metric(known, rows[example_id]).value for weight, metric in parts)

    return {module: partial(shape, parts) for module, parts in program.shaping.items()}


def call_rewards(trajectory: Trajectory, rewards: Rewards) -> list[float]:
    """The reward of every call of a run: the run's own when it finished, else failure and format rewards; and shaping.

    A call from which a share of its outputs could be read lies that share of the way from format to failure reward.
    """
    found = []
    for call in trajectory.calls:
        if trajectory.ending == "done":
            value = trajectory.reward
        elif call.outputs is None:
            value = rewards.format + call.readable * (rewards.failure - rewards.format)
        else:
            value = rewards.failure
        shape = rewards.shaping.get(call.module)
        found.append(value + (shape(call, trajectory.example_id) if shape and call.outputs is not None else 0.0))
    return found


def form_groups(
    trajectories: Sequence[Trajectory],
    modules: Sequence[str],
    rewards: Rewards,
    grouping: Grouping = PAPER,
    seed: int = 0,
) -> list[Group]:
    """The groups of the calls of ``modules``, in the order in which they are first met.

    ``seed`` is for `fill: random`. Members are selected last: a group of more than `select` keeps the most diverse.
    """
    if grouping.by == "trajectory":
        groups = _by_trajectory(trajectories, modules, rewards)
    elif any(call.path for t in trajectories for call in t.calls):
        groups = _by_state(trajectories, modules, rewards)
    else:
        groups = _by_call(trajectories, modules, rewards, grouping, seed)
    if grouping.select is None:
        return groups
    return [replace(group, members=select_diverse(group.members, grouping.select)) for group in groups]


def select_diverse(members: Sequence[Member], count: int) -> tuple[Member, ...]:
    """The ``count`` members whose rewards have the highest variance (the paper's SelectKDiverseElements), in their order.

    Such a set is made of the best i and the worst count - i; all i are tried, the earliest of equals wins.
    """
    if len(members) <= count:
        return tuple(members)
    order = sorted(range(len(members)), key=lambda i: (-members[i].reward, i))
    candidates = [[*order[:i], *order[len(order) - (count - i) :]] for i in range(count + 1)]
    best = max(candidates, key=lambda chosen: _variance([members[i].reward for i in chosen]))
    return tuple(members[i] for i in sorted(best))


def _variance(values: Sequence[float]) -> float:
    mean = sum(values) / len(values)
    return round(sum((v - mean) ** 2 for v in values), 12)


def _trained(
    trajectories: Sequence[Trajectory], modules: Sequence[str], rewards: Rewards
) -> Iterator[tuple[Trajectory, Call, float]]:
    for trajectory in trajectories:
        for call, reward in zip(trajectory.calls, call_rewards(trajectory, rewards), strict=True):
            if call.module in modules:
                yield trajectory, call, reward


def _by_call(
    trajectories: Sequence[Trajectory], modules: Sequence[str], rewards: Rewards, grouping: Grouping, seed: int
) -> list[Group]:
    """By (example, module, invocation index)."""
    members: dict[tuple[str, str, int], dict[Run, Member]] = defaultdict(dict)
    own: dict[tuple[str, str], dict[Run, list[Member]]] = defaultdict(lambda: defaultdict(list))
    runs: dict[str, list[Run]] = defaultdict(list)
    for trajectory in trajectories:
        runs[trajectory.example_id].append((trajectory.example_id, trajectory.rollout))
    for trajectory, call, reward in _trained(trajectories, modules, rewards):
        run = (trajectory.example_id, trajectory.rollout)
        member = Member((call,), reward, run)
        members[trajectory.example_id, call.module, call.index][run] = member
        own[trajectory.example_id, call.module][run].append(member)
    groups = []
    for (example, module, index), found in members.items():
        whole = len(found) == len(runs[example])
        if grouping.uneven == "truncate" and not whole:
            continue
        if grouping.uneven == "fill" and not whole:
            spare = own[example, module]
            for run in runs[example]:
                if run not in found and spare.get(run):
                    draw = random.Random(seed_of(seed, "fill", example, module, index, run[1]))
                    found[run] = draw.choice(spare[run]) if grouping.fill == "random" else spare[run][-1]
            found = {run: found[run] for run in runs[example] if run in found}
        groups.append(Group(example, module, index, tuple(found.values())))
    return groups


def _by_trajectory(trajectories: Sequence[Trajectory], modules: Sequence[str], rewards: Rewards) -> list[Group]:
    """By example. A run's reward is the mean over its trained calls: its own where nothing is shaped and it was done."""
    calls: dict[Run, list[tuple[Call, float]]] = defaultdict(list)
    for trajectory, call, reward in _trained(trajectories, modules, rewards):
        calls[trajectory.example_id, trajectory.rollout].append((call, reward))
    members: dict[str, list[Member]] = defaultdict(list)
    for run, found in calls.items():
        mean = sum(reward for _, reward in found) / len(found)
        members[run[0]].append(Member(tuple(call for call, _ in found), mean, run))
    return [Group(example, "", 0, tuple(found)) for example, found in members.items()]


def _by_state(trajectories: Sequence[Trajectory], modules: Sequence[str], rewards: Rewards) -> list[Group]:
    """In a tree of runs: the calls made from one state, each once, with the mean reward of the runs that go through it.

    Below the last branching every state has one call; those are grouped as the paper does.
    """
    nodes: dict[tuple[str, str, int, tuple[int, ...], tuple[int, ...]], list[tuple[Member, bool]]] = defaultdict(list)
    for trajectory, call, reward in _trained(trajectories, modules, rewards):
        run = (trajectory.example_id, trajectory.rollout)
        # The ids are part of the key: a tool that answers differently each time makes the runs of one node differ.
        key = (trajectory.example_id, call.module, call.index, call.path, call.completion.ids_T)
        nodes[key].append((Member((call,), reward, run), call.branches))
    groups: dict[tuple[str, str, int, tuple[int, ...] | None], list[Member]] = defaultdict(list)
    for (example, module, index, path, _), found in nodes.items():
        mean = sum(member.reward for member, _ in found) / len(found)
        first, branches = found[0]
        groups[example, module, index, path[:-1] if branches else None].append(replace(first, reward=mean))
    return [Group(*key[:3], members=tuple(found)) for key, found in groups.items()]
