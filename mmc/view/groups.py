"""The groups of a training: a summary of each line of rollouts.jsonl, filters, and words for why a call was left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmc.report.chart import scale_of
from mmc.view.lines import Line, Row

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


def group_page(row: Row) -> dict[str, Any]:
    """What the page of one group shows."""
    advantages = [m["advantage"] for m in row["members"] if m["advantage"] is not None]
    prompts = [
        [{"role": row["messages"][i][0], "content": row["messages"][i][1]} for i in numbers]
        for numbers in (row["prompts"] if row["messages"] is not None else [])
    ]
    used = Counter(call["prompt"] for m in row["members"] for call in m["calls"])
    return {
        "row": row,
        "summary": summary(row),
        "prompts": [(number, messages, used[number]) for number, messages in enumerate(prompts)],
        "scale": scale_of([*advantages, 0.0]),
        "REASONS": REASONS,
    }
