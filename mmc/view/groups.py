"""The groups of a training: a summary of each line of rollouts.jsonl, filters, and words for why a call was left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmc.report.chart import scale_of
from mmc.report.html import words_changed
from mmc.view.lines import Line, Row

COMPARED = 20_000
"""Characters up to which two messages are compared word by word."""
REASONS: Mapping[str, str] = {
    "no_spread": "no gradient: all rewards of its group are equal",
    "zero_advantage": "no gradient: its reward is its group's mean",
    "forced": "no gradient: the constraint left no token free",
    "truncated": "cut out: not every run made such a call",
    "not_selected": "cut out: others of its group were selected",
    "frozen": "not trained: the module is frozen",
}
"""Why a call was not trained on, as rollouts.jsonl has it -> in words."""


@dataclass(frozen=True)
class GroupSummary:
    """What a list shows of one group."""

    step: int
    example: str
    module: str
    index: int
    members: int
    mean: float | None
    spread: float | None
    left_out: Mapping[str, int]
    """Reason -> calls."""
    calls: int
    filled: int
    interrupted: int

    @property
    def trained(self) -> int:
        """Calls that were trained on."""
        return self.calls - sum(self.left_out.values())


def summary(row: Row) -> GroupSummary:
    """Of one line."""
    members = row["members"]
    rewards = [m["reward"] for m in members if m["reward"] is not None and m["advantage"] is not None]
    calls = [call for m in members for call in m["calls"]]
    return GroupSummary(
        step=row["step"],
        example=str(row["example"]),
        module=row["module"],
        index=row["index"],
        members=len(members),
        mean=sum(rewards) / len(rewards) if rewards else None,
        spread=max(rewards) - min(rewards) if rewards else None,
        left_out=Counter(call["left_out"] for call in calls if call["left_out"]),
        calls=len(calls),
        filled=sum(m["filled"] for m in members),
        interrupted=sum(m["ending"] != "done" for m in members),
    )


KINDS: Mapping[str, tuple[str, Callable[[GroupSummary], bool]]] = {
    "": ("all", lambda group: True),
    "trained": ("with gradient", lambda group: group.trained > 0),
    "flat": ("without spread", lambda group: "no_spread" in group.left_out),
    "cut": ("with calls cut out", lambda group: bool({"truncated", "not_selected"} & group.left_out.keys())),
    "filled": ("with padding", lambda group: group.filled > 0),
    "interrupted": ("with interrupted runs", lambda group: group.interrupted > 0),
    "frozen": ("of frozen modules", lambda group: "frozen" in group.left_out),
}
"""What the list can be narrowed to: name -> (in words, whether a group is meant)."""


@dataclass(frozen=True)
class Filter:
    """What of the groups is shown; empty fields mean all."""

    step: str = ""
    module: str = ""
    example: str = ""
    kind: str = ""

    def of(self, groups: Sequence[Line[GroupSummary]]) -> list[Line[GroupSummary]]:
        """Those that are meant, the newest step first."""
        wanted = KINDS.get(self.kind, KINDS[""])[1]
        found = [
            line
            for line in groups
            if self.step in ("", str(line.summary.step))
            and self.module in ("", line.summary.module)
            and self.example in ("", line.summary.example)
            and wanted(line.summary)
        ]
        return sorted(found, key=lambda line: (-line.summary.step, line.number))


@dataclass(frozen=True)
class Prompt:
    """One of the prompts of a group: how many calls had it, and its messages, each (role, pieces as of ``words_changed``)."""

    number: int
    calls: int
    messages: Sequence[tuple[str, Sequence[tuple[str, str]]]]

    @property
    def own(self) -> str:
        """The words in it that the first prompt has not."""
        return " ".join(text.strip() for _, pieces in self.messages for kind, text in pieces if kind == "added")


def _against(first: Sequence[Sequence[str]], other: Sequence[Sequence[str]]) -> list[tuple[str, list[tuple[str, str]]]]:
    """The messages of a prompt against those of the first; as they are where the two are not alike, or long."""
    alike = [role for role, _ in first] == [role for role, _ in other]
    found = []
    for i, (role, text) in enumerate(other):
        compared = alike and len(text) + len(first[i][1]) < COMPARED and text != first[i][1]
        found.append((role, words_changed(first[i][1], text) if compared else [("same", text)]))
    return found


def group_page(row: Row) -> dict[str, Any]:
    """What the page of one group shows."""
    advantages = [m["advantage"] for m in row["members"] if m["advantage"] is not None]
    kept = row["prompts"] if row["messages"] is not None else []
    asked = [[row["messages"][i] for i in numbers] for numbers in kept]
    used = Counter(call["prompt"] for m in row["members"] for call in m["calls"])
    prompts = [Prompt(number, used[number], _against(asked[0], found)) for number, found in enumerate(asked)]
    return {
        "row": row,
        "summary": summary(row),
        "prompts": prompts,
        "scale": scale_of([*advantages, 0.0]),
        "REASONS": REASONS,
    }
