"""Groups: the calls of one module at one invocation index, over all runs of one example (section 3 of the paper).

Prompts inside a group may differ: what came before a call differs from run to run.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from mmc.program.trajectory import Call, Trajectory


@dataclass(frozen=True)
class Member:
    """One call and the reward it is trained with."""

    call: Call
    reward: float


@dataclass(frozen=True)
class Group:
    """The members of one (example, module, invocation index)."""

    example_id: str
    module: str
    index: int
    members: tuple[Member, ...]

    @property
    def rewards_C(self) -> list[float]:
        return [m.reward for m in self.members]


@dataclass(frozen=True)
class Rewards:
    """What calls of interrupted runs get: ``format`` the one that could not be read, ``failure`` the others."""

    failure: float = 0.0
    format: float = 0.0


def call_rewards(trajectory: Trajectory, rewards: Rewards) -> list[float]:
    """The reward of every call of a run: the run's own when it finished, else failure and format rewards."""
    if trajectory.ending == "done":
        return [trajectory.reward] * len(trajectory.calls)
    return [rewards.format if call.outputs is None else rewards.failure for call in trajectory.calls]


def form_groups(
    trajectories: Sequence[Trajectory],
    modules: Collection[str],
    rewards: Rewards,
    mode: Literal["ragged", "truncate"] = "ragged",
) -> list[Group]:
    """Groups the calls of ``modules``, in the order in which they are first met.

    ragged: a group holds the runs that made the call. truncate: only calls that every run of the example made.
    """
    runs: dict[str, int] = defaultdict(int)
    members: dict[tuple[str, str, int], list[Member]] = defaultdict(list)
    for trajectory in trajectories:
        runs[trajectory.example_id] += 1
        for call, reward in zip(trajectory.calls, call_rewards(trajectory, rewards), strict=True):
            if call.module in modules:
                members[trajectory.example_id, call.module, call.index].append(Member(call, reward))
    return [
        Group(*key, members=tuple(group))
        for key, group in members.items()
        if mode == "ragged" or len(group) == runs[key[0]]
    ]
