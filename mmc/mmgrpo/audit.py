"""What the first rollouts say about the reward, before anything is trained on it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from mmc.data import Example
from mmc.mmgrpo.advantage import has_spread
from mmc.mmgrpo.group import Group
from mmc.mmgrpo.report import UNREADABLE
from mmc.program.trajectory import Trajectory


@dataclass(frozen=True)
class Audit:
    """The reward on some runs of the untrained program. Scores are means in [0, 1]; None: could not be had."""

    runs: int
    reward: float
    flat: float
    """Share of groups without spread; they teach nothing."""
    unreadable: float
    """Share of runs ended by a completion that could not be read."""
    interrupted: float
    """Share of runs ended by anything."""
    repeat: float | None
    """Mean difference when the same outputs are scored again."""
    empty: float | None
    """Score of outputs that hold nothing."""
    constant: float | None
    """Score of the program's commonest outputs given as the answer to every example."""

    def findings(self) -> list[str]:
        """What a user should know, the worst first."""
        found = []
        if self.flat == 1.0:
            found.append(
                f"training cannot work on these: in each of the groups all rewards are equal (mean reward {self.reward:.3f}). "
                + self._way_out()
            )
        elif self.flat > 0.8:
            found.append(
                f"{self.flat:.0%} of the groups have equal rewards and teach nothing; `resample` replaces them"
            )
        if self.unreadable > 0.2:
            found.append(
                f"{self.unreadable:.0%} of the runs end in a completion that cannot be read; `constrain: true` or a simpler "
                "format helps before weights do"
            )
        if self.interrupted - self.unreadable > 0.2:
            found.append(
                f"{self.interrupted - self.unreadable:.0%} of the runs are interrupted by tools, limits or errors"
            )
        if self.repeat is not None and self.repeat > 0.05:
            found.append(
                f"the metric is not repeatable: the same outputs scored twice differ by {self.repeat:.3f} on average"
            )
        for name, score in (("an empty answer", self.empty), ("one constant answer", self.constant)):
            if score is not None and score > 0 and score >= self.reward:
                found.append(
                    f"{name} would score {score:.3f}, the program scores {self.reward:.3f}: training may learn just that"
                )
        return found

    def _way_out(self) -> str:
        if self.reward <= 0:
            return "No run scores: begin with `prompts` or `distill`, a metric that gives partial credit, or a larger model"
        if self.reward >= 1:
            return "Every run scores: use harder examples"
        return "Raise `temperature` or `rollouts`, or use a metric that tells runs apart"


Row = Mapping[str, Any]
Scorer = Callable[[Sequence[tuple[Row, Row]]], list[float | None]]
"""Scores (outputs, row of data) pairs; None where the metric cannot say."""


def audit(
    runs: Sequence[Trajectory], groups: Sequence[Group], examples: Sequence[Example], score: Scorer | None
) -> Audit:
    """The audit of ``runs`` on ``examples`` (of which only those that were run count)."""
    rows = {example.id: example.row for example in examples}
    done = [t for t in runs if t.ending == "done" and t.outputs is not None and t.example_id in rows]
    ran = [rows[name] for name in dict.fromkeys(t.example_id for t in runs) if name in rows]
    repeat = empty = constant = None
    if score is not None and done:
        again = score([(t.outputs or {}, rows[t.example_id]) for t in done[:64]])
        pairs = [(t.reward, value) for t, value in zip(done, again, strict=False) if value is not None]
        repeat = fmean(abs(a - b) for a, b in pairs) if pairs else None
        empty = _everywhere(score, {name: _nothing(value) for name, value in (done[0].outputs or {}).items()}, ran)
        constant = _everywhere(score, _commonest(done), ran)
    return Audit(
        runs=len(runs),
        reward=fmean(t.reward for t in runs),
        flat=fmean(not has_spread(g.rewards_C) for g in groups) if groups else 1.0,
        unreadable=fmean(t.ending in UNREADABLE for t in runs),
        interrupted=fmean(t.ending != "done" for t in runs),
        repeat=repeat,
        empty=empty,
        constant=constant,
    )


def _everywhere(score: Scorer, outputs: Row, rows: Sequence[Row]) -> float | None:
    known = [value for value in score([(outputs, row) for row in rows]) if value is not None]
    return fmean(known) if known else None


def _nothing(value: Any) -> Any:
    return type(value)() if isinstance(value, str | list | dict | int | float | bool) else None


def _commonest(runs: Sequence[Trajectory]) -> Mapping[str, Any]:
    texts = Counter(json.dumps(t.outputs, sort_keys=True, default=str) for t in runs)
    wanted = texts.most_common(1)[0][0]
    return next(t.outputs or {} for t in runs if json.dumps(t.outputs, sort_keys=True, default=str) == wanted)
