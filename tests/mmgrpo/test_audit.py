"""What the audit says of rewards that training cannot use."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from mmc.data import Example
from mmc.engine.base import Completion
from mmc.metric import Score
from mmc.mmgrpo.audit import Audit, audit
from mmc.mmgrpo.group import Rewards, form_groups
from mmc.program.trajectory import Call, Ending, Trajectory

EXAMPLES = [Example("a", {"gold": "x"}), Example("b", {"gold": "x"}), Example("c", {"gold": "y"})]


def exact(outputs: Mapping[str, Any], row: Mapping[str, Any]) -> Score:
    return Score(float(outputs["o"] == row["gold"]))


def run(example: str, output: str, rollout: int, reward: float, ending: Ending = "done") -> Trajectory:
    call = Call("m", 0, {}, (), Completion("", "stop", ids_T=(1,)), {"o": output} if ending == "done" else None)
    outputs = {"o": output} if ending == "done" else None
    return Trajectory(example, rollout, (call,), outputs, reward, ending)


def audited(runs: Sequence[Trajectory], metric: Any = exact) -> Audit:
    def score(pairs: Sequence[tuple[Any, Any]]) -> list[float | None]:
        return [metric(outputs, row).value for outputs, row in pairs]

    return audit(runs, form_groups(runs, ["m"], Rewards()), EXAMPLES, score)


def test_shares_are_counted() -> None:
    runs = [
        run("a", "x", 0, 1.0),
        run("a", "z", 1, 0.0),
        run("b", "", 2, 0.0, "unparsed"),
        run("b", "", 3, 0.0, "tool_failed"),
    ]
    found = audited(runs)
    assert (found.runs, found.reward, found.flat) == (4, 0.25, 0.5)
    assert (found.unreadable, found.interrupted) == (0.25, 0.5)
    assert any("25% of the runs end in a completion that cannot be read" in line for line in found.findings())
    assert any("25% of the runs are interrupted by tools" in line for line in found.findings())


def test_a_constant_answer_that_scores_as_well_is_said() -> None:
    runs = [run(e, "x", i, float(e != "c")) for i, e in enumerate("abc")]
    found = audited(runs)
    assert found.constant == found.reward == 2 / 3 and found.empty == 0.0
    assert any("one constant answer would score 0.667" in line for line in found.findings())


def test_an_empty_answer_that_scores_is_said() -> None:
    def lenient(outputs: Mapping[str, Any], row: Mapping[str, Any]) -> Score:
        return Score(1.0 if not outputs["o"] else 0.0)

    found = audited([run("a", "x", 0, 0.0), run("a", "y", 1, 0.0)], lenient)
    assert found.empty == 1.0 and any("an empty answer would score 1.000" in line for line in found.findings())


def test_a_judge_that_does_not_repeat_itself_is_said() -> None:
    flips = itertools.cycle([1.0, 0.0])

    def moody(outputs: Mapping[str, Any], row: Mapping[str, Any]) -> Score:
        return Score(next(flips))

    found = audited([run("a", "x", i, 1.0) for i in range(8)], moody)
    assert found.repeat == 0.5 and any("not repeatable" in line for line in found.findings())
    assert audited([run("a", "x", 0, 1.0), run("a", "z", 1, 0.0)]).repeat == 0.0


def test_rewards_that_are_always_one_say_so() -> None:
    lines = audited([run("a", "x", i, 1.0) for i in range(4)]).findings()
    assert "training cannot work" in lines[0] and "Every run scores" in lines[0]


def test_a_healthy_reward_has_no_findings() -> None:
    runs = [run("a", "x", 0, 1.0), run("a", "x", 1, 1.0), run("a", "z", 2, 0.0), run("c", "y", 3, 1.0)]
    assert audited(runs).findings() == []
