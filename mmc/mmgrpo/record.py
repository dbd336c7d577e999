"""rollouts.jsonl: what every step sampled, group by group, for people to read; training never reads it.

A line is a group: ``step``, ``example``, ``module``, ``index``, and ``members``, each with its rollout, reward, advantage, how
its run ended, and its calls. Calls that no group took stand in such lines too. Each distinct message of a line is stored once
(``messages``); a call names its prompt by number (``prompts``). So a line costs about the distinct text of its prompts and
completions and 200 bytes a call. A text is cut at ``TEXT`` characters, and once the file holds ``LIMIT`` bytes, further lines
go without texts.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from mmc.mmgrpo.advantage import advantages
from mmc.mmgrpo.group import Group, Member, Rewards, call_rewards
from mmc.mmgrpo.rollout import Rollouts
from mmc.mmgrpo.update import Skipped, sampled_of, without_gradient
from mmc.program.trajectory import Call, Ending, Trajectory, call_identity
from mmc.spec.model import MmGrpo

TEXT = 20_000
"""Most characters of one text."""
LIMIT = 256 * 2**20
"""Bytes of a file from which on texts are left out."""

Reason = Literal[Skipped, "truncated", "not_selected", "frozen"]
"""Why a call was not trained on: its group's rewards are all equal; its reward is its group's mean; a constraint forced all
its tokens; not every run made such a call (`uneven: truncate`); others of its group were chosen (`select`); its module is
not trained."""
Place = tuple[str, str, int]
"""(example, module, invocation index)."""


@dataclass(frozen=True)
class KeptCall:
    """One call. ``prompt`` is a number in the line's prompts, ``runs`` the rollouts of a tree that made it together."""

    module: str
    index: int
    prompt: int
    completion: str
    finish: str
    error: str | None
    left_out: Reason | None
    runs: tuple[int, ...] = ()


@dataclass(frozen=True)
class KeptMember:
    """One member of a group, or a call that no group took. Rollouts below 0 are a teacher's."""

    rollout: int
    ending: Ending
    error: str | None
    score: float
    """Of the run."""
    reward: float | None
    """What training gave; None where it gave none."""
    advantage: float | None
    calls: tuple[KeptCall, ...]
    filled: bool = False
    """Whether its call stands in for one that its run never made."""


@dataclass
class _Line:
    """One line while it is put together."""

    place: Place
    members: list[KeptMember] = field(default_factory=list)
    messages: dict[tuple[str, str], int] = field(default_factory=dict)
    prompts: dict[tuple[int, ...], int] = field(default_factory=dict)

    def prompt(self, call: Call) -> int:
        texts = [(message.role, _cut(message.content)) for message in call.messages]
        numbers = tuple(self.messages.setdefault(text, len(self.messages)) for text in texts)
        return self.prompts.setdefault(numbers, len(self.prompts))

    def plain(self, step: int) -> dict[str, Any]:
        example, module, index = self.place
        head = {"step": step, "example": example, "module": module, "index": index}
        texts = {"messages": list(self.messages), "prompts": list(self.prompts)}
        return {**head, **texts, "members": [asdict(member) for member in self.members]}


class _Recorder:
    """Puts the lines of one step together."""

    def __init__(self, rollouts: Rollouts, config: MmGrpo, rewards: Rewards) -> None:
        self.runs = {(t.example_id, t.rollout): t for t in rollouts.runs}
        self.groups, self.config, self.rewards = rollouts.groups, config, rewards
        self.together: dict[tuple[object, ...], list[int]] = defaultdict(list)
        """Rollouts by the call they made; more than one in a tree."""
        for run in rollouts.runs:
            for call in run.calls:
                self.together[call_identity(run, call)].append(run.rollout)
        self.seen: set[tuple[object, ...]] = set()

    def lines(self, modules: Sequence[str]) -> list[_Line]:
        """All groups, then what no group took: beside its group where there is one."""
        values = advantages([group.rewards_C for group in self.groups], self.config.normalize)
        lines = [self._group(group, values_C) for group, values_C in zip(self.groups, values, strict=True)]
        by_place: dict[Place, _Line] = {}
        if not self.config.tree:  # there, several groups are of one place
            by_place = {line.place: line for line in lines}
        grouped = set(by_place)
        for run in self.runs.values():
            self._others(run, modules, by_place, grouped)
        return [*lines, *(line for place, line in by_place.items() if place not in grouped)]

    def _group(self, group: Group, values_C: Sequence[float]) -> _Line:
        line = _Line((group.example_id, group.module, group.index))
        for member, advantage in zip(group.members, values_C, strict=True):
            line.members.append(self._member(line, group, member, advantage))
        return line

    def _member(self, line: _Line, group: Group, member: Member, advantage: float) -> KeptMember:
        run, calls = self.runs[member.run], []
        for call in member.calls:
            self.seen.add(call_identity(run, call))
            forced = not sampled_of(call).free_T
            calls.append(
                self._call(line, run, call, "forced" if forced else without_gradient(group, advantage, self.config))
            )
        filled = self.config.grouping.by == "call" and any(call.index != group.index for call in member.calls)
        outcome = (run.rollout, run.ending, run.error, run.reward)
        return KeptMember(*outcome, member.reward, advantage, tuple(calls), filled)

    def _call(self, line: _Line, run: Trajectory, call: Call, reason: Reason | None) -> KeptCall:
        runs = tuple(self.together[call_identity(run, call)]) if call.path else ()
        text, finish = _cut(call.completion.text), call.completion.finish
        return KeptCall(call.module, call.index, line.prompt(call), text, finish, call.error, reason, runs)

    def _others(self, run: Trajectory, modules: Sequence[str], lines: dict[Place, _Line], grouped: set[Place]) -> None:
        """The calls of a run that no group took."""
        left = [i for i, call in enumerate(run.calls) if call_identity(run, call) not in self.seen]
        trained = any(run.calls[i].module in modules for i in left)
        rewards = call_rewards(run, self.rewards) if trained else []
        for i in left:
            call = run.calls[i]
            self.seen.add(call_identity(run, call))
            place, reason = self._place(run, call, modules, grouped)
            line = lines.setdefault(place, _Line(place))
            reward = rewards[i] if call.module in modules else None
            kept = self._call(line, run, call, reason)
            line.members.append(KeptMember(run.rollout, run.ending, run.error, run.reward, reward, None, (kept,)))

    def _place(self, run: Trajectory, call: Call, modules: Sequence[str], grouped: set[Place]) -> tuple[Place, Reason]:
        own = (run.example_id, call.module, call.index)
        if call.module not in modules:
            return own, "frozen"
        whole = (run.example_id, "", 0)
        if self.config.grouping.by != "call" and whole in grouped:
            return whole, "not_selected"
        truncated = self.config.grouping.uneven == "truncate" and own not in grouped and not self.config.tree
        return own, "truncated" if truncated else "not_selected"


def keep(file: Path, step: int, rollouts: Rollouts, config: MmGrpo, trained: tuple[Sequence[str], Rewards]) -> None:
    """Appends the lines of one step. ``trained``: the trained modules, and what their calls get."""
    modules, rewards = trained
    lines = [line.plain(step) for line in _Recorder(rollouts, config, rewards).lines(modules)]
    if file.exists() and file.stat().st_size > LIMIT:
        lines = [_without_texts(line) for line in lines]
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as stream:
        stream.writelines(json.dumps(line, ensure_ascii=False, separators=(",", ":")) + "\n" for line in lines)


def _without_texts(line: Mapping[str, Any]) -> dict[str, Any]:
    members = [{**m, "calls": [{**call, "completion": None} for call in m["calls"]]} for m in line["members"]]
    return {**line, "messages": None, "members": members}


def _cut(text: str) -> str:
    return text if len(text) <= TEXT else f"{text[:TEXT]} [{len(text) - TEXT} more characters are not kept]"
