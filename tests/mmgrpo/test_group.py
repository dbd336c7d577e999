from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from mmc.engine.base import Completion
from mmc.mmgrpo.distill import passing_calls
from mmc.mmgrpo.group import Member, Rewards, call_rewards, form_groups, select_diverse
from mmc.mmgrpo.report import module_curves
from mmc.program.trajectory import Call, Ending, Trajectory
from mmc.spec.model import Grouping

_ROLLOUTS = itertools.count()
"""Runs get numbers of their own unless a test says otherwise."""


def trajectory(
    modules: Sequence[str], reward: float, ending: Ending = "done", example: str = "e", rollout: int | None = None
) -> Trajectory:
    rollout = next(_ROLLOUTS) if rollout is None else rollout
    counts: dict[str, int] = {}
    calls = []
    for i, module in enumerate(modules):
        failed = ending in ("unparsed", "cut") and i == len(modules) - 1
        index = counts.get(module, 0)
        counts[module] = index + 1
        outputs = None if failed else {"x": 1}
        calls.append(
            Call(module, index, {}, (), Completion("", "stop", ids_T=(i,)), outputs, readable=float(not failed))
        )
    return Trajectory(example, rollout, tuple(calls), {}, reward, ending)


def test_calls_are_grouped_by_example_module_and_invocation_index() -> None:
    runs = [trajectory(["a", "b", "a"], 1.0), trajectory(["a", "b"], 0.0), trajectory(["a"], 0.5, example="f")]
    groups = {(g.example_id, g.module, g.index): g.rewards_C for g in form_groups(runs, ["a", "b"], Rewards())}
    assert groups == {("e", "a", 0): [1.0, 0.0], ("e", "b", 0): [1.0, 0.0], ("e", "a", 1): [1.0], ("f", "a", 0): [0.5]}


def test_lessons_of_single_calls_take_the_best_of_every_place() -> None:
    values = {("a", 0): 1.0, ("a", 1): 3.0, ("b", 0): 2.0, ("b", 1): 0.0}

    def run(number: int) -> Trajectory:
        calls = [Call(m, 0, {}, (), Completion(f"{m}{number}", "stop", ids_T=(number,)), {"x": 1}) for m in "ab"]
        return Trajectory("e", number, tuple(calls), {}, 0.0, "done")

    def own(call: Call, example_id: str) -> float:
        return values[call.module, call.completion.ids_T[0]]

    groups = form_groups([run(0), run(1), run(1)], ["a", "b"], Rewards(shaping={"a": own, "b": own}))

    def texts(threshold: float, per_example: int) -> list[list[str]]:
        lessons = passing_calls(groups, threshold, per_example)
        return [[call.completion.text for call in calls] for _, calls in lessons]

    assert texts(0.5, 1) == [["a1", "b0"]], "calls of two runs"
    assert texts(0.0, 3) == [["a1", "b0"], ["a0", "b1"]], "equal calls count once"
    assert texts(2.5, 1) == [["a1"]] and texts(3.5, 1) == []


def test_truncate_drops_calls_that_some_run_lacks() -> None:
    runs = [trajectory(["a", "a"], 1.0), trajectory(["a"], 0.0)]
    assert [(g.module, g.index) for g in form_groups(runs, ["a"], Rewards(), Grouping(uneven="truncate"))] == [("a", 0)]


def test_frozen_modules_form_no_groups() -> None:
    assert {g.module for g in form_groups([trajectory(["a", "b"], 1.0)], ["b"], Rewards())} == {"b"}


def test_an_unreadable_completion_gets_the_format_reward_and_the_calls_before_it_the_failure_reward() -> None:
    rewards = Rewards(failure=0.1, format=-0.2)
    assert call_rewards(trajectory(["a", "b"], 0.0, "unparsed"), rewards) == [0.1, -0.2]
    assert call_rewards(trajectory(["a", "b"], 0.0, "tool_failed"), rewards) == [0.1, 0.1]


def test_one_interrupted_run_leaves_the_others_in_their_group() -> None:
    runs = [trajectory(["a", "b"], 1.0), trajectory(["a"], 0.0, "unparsed"), trajectory(["a", "b"], 0.0)]
    groups = {(g.module, g.index): g.rewards_C for g in form_groups(runs, ["a", "b"], Rewards(format=-1.0))}
    assert groups == {("a", 0): [1.0, -1.0, 0.0], ("b", 0): [1.0, 0.0]}


@given(
    st.lists(
        st.tuples(st.lists(st.sampled_from("abc"), max_size=6), st.floats(0, 1), st.sampled_from("xyz")), max_size=12
    )
)
def test_every_call_is_in_exactly_one_group(drawn: list[tuple[list[str], float, str]]) -> None:
    runs = [trajectory(modules, reward, example=example) for modules, reward, example in drawn]
    groups = form_groups(runs, ["a", "b", "c"], Rewards())
    assert sum(len(g.members) for g in groups) == sum(len(t.calls) for t in runs)
    assert len({(g.example_id, g.module, g.index) for g in groups}) == len(groups)


def test_fill_puts_in_a_call_of_the_same_run_and_module() -> None:
    runs = [trajectory(["a", "a", "a"], 1.0), trajectory(["a", "a"], 0.0), trajectory(["b"], 0.5)]
    for how in ("random", "last"):
        groups = form_groups(runs, ["a"], Rewards(), Grouping(uneven="fill", fill=how))  # type: ignore[arg-type]
        assert [(g.index, g.rewards_C) for g in groups] == [(0, [1.0, 0.0]), (1, [1.0, 0.0]), (2, [1.0, 0.0])]
        own = {call.completion.ids_T for call in runs[1].calls}
        filled = groups[2].members[1].calls[0]
        assert filled.completion.ids_T in own and (how == "random" or filled == runs[1].calls[-1])
    draws = {
        form_groups(runs, ["a"], Rewards(), Grouping(uneven="fill"), seed)[2].members[1].calls[0].index
        for seed in range(20)
    }
    assert draws == {0, 1}, "any of its calls may be drawn, and the seed decides"


def test_trajectories_are_groups_of_whole_runs() -> None:
    runs = [trajectory(["a", "b", "a"], 1.0), trajectory(["a"], 0.25), trajectory(["b"], 0.0)]
    (group,) = form_groups(runs, ["a"], Rewards(), Grouping(by="trajectory"))
    assert group.rewards_C == [1.0, 0.25] and [len(m.calls) for m in group.members] == [2, 1]


@given(st.lists(st.floats(0, 1), min_size=2, max_size=9), st.integers(2, 6))
def test_the_selected_members_have_the_highest_variance_of_all_sets(rewards: list[float], count: int) -> None:
    members = [Member((), reward, ("e", i)) for i, reward in enumerate(rewards)]

    def variance(values: Sequence[float]) -> float:
        mean = sum(values) / len(values)
        return sum((v - mean) ** 2 for v in values)

    chosen = select_diverse(members, count)
    size = min(count, len(rewards))
    best = max(variance(subset) for subset in itertools.combinations(rewards, size))
    assert len(chosen) == size and [m.run[1] for m in chosen] == sorted(m.run[1] for m in chosen)
    assert variance([m.reward for m in chosen]) >= best - 1e-9


def test_shaping_is_added_to_readable_calls_of_its_module() -> None:
    rewards = Rewards(format=-1.0, shaping={"b": lambda call, example: 0.5})
    assert call_rewards(trajectory(["a", "b"], 1.0), rewards) == [1.0, 1.5]
    assert call_rewards(trajectory(["b", "b"], 0.0, "unparsed"), rewards) == [0.5, -1.0]


def in_a_tree(reward: float, leaf: tuple[int, ...], ids: Sequence[int]) -> Trajectory:
    """A run of three calls of one module in a tree of widths 2, 2, 1."""
    run = trajectory(["a", "a", "a"], reward, rollout=2 * leaf[0] + leaf[1])
    calls = [
        replace(call, path=leaf[: i + 1], branches=i < 2, completion=Completion("", "stop", ids_T=(ids[i],)))
        for i, call in enumerate(run.calls)
    ]
    return replace(run, calls=tuple(calls))


def test_in_a_tree_siblings_are_compared_by_the_mean_below_them() -> None:
    runs = [
        in_a_tree(1.0, (0, 0), (1, 2, 3)),
        in_a_tree(0.5, (0, 1), (1, 4, 5)),
        in_a_tree(0.25, (1, 0), (6, 7, 8)),
        in_a_tree(0.0, (1, 1), (6, 9, 10)),
    ]
    groups = form_groups(runs, ["a"], Rewards())
    found = {(g.index, tuple(m.calls[0].completion.ids_T[0] for m in g.members)): g.rewards_C for g in groups}
    assert found == {
        (0, (1, 6)): [0.75, 0.125],
        (1, (2, 4)): [1.0, 0.5],
        (1, (7, 9)): [0.25, 0.0],
        (2, (3, 5, 8, 10)): [1.0, 0.5, 0.25, 0.0],
    }, "below the last branching, calls are grouped as the paper does"


def test_curves_are_kept_by_module() -> None:
    runs = [trajectory(["a", "b", "a"], 1.0), trajectory(["a", "b"], 0.0, "unparsed")]
    curves = module_curves(form_groups(runs, ["a", "b"], Rewards(failure=0.5, format=-1.0)))
    assert (curves["a"].calls, curves["b"].calls) == (3, 2)
    assert curves["a"].reward == (1.0 + 0.5 + 1.0) / 3 and curves["b"].reward == (1.0 - 1.0) / 2
    assert curves["a"].spread == (0.5 + 0.0) / 2 and curves["b"].spread == 2.0 and curves["a"].tokens == 1.0
    whole = module_curves(form_groups(runs, ["a", "b"], Rewards(), Grouping(by="trajectory")))
    assert whole["a"].calls == 3 and whole["a"].spread == whole["b"].spread == 1.0
