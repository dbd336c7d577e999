from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from mmc.engine.base import Completion
from mmc.mmgrpo.group import Rewards, call_rewards, form_groups
from mmc.program.trajectory import Call, Ending, Trajectory


def trajectory(
    modules: Sequence[str], reward: float, ending: Ending = "done", example: str = "e", rollout: int = 0
) -> Trajectory:
    counts: dict[str, int] = {}
    calls = []
    for i, module in enumerate(modules):
        failed = ending in ("unparsed", "cut") and i == len(modules) - 1
        index = counts.get(module, 0)
        counts[module] = index + 1
        calls.append(Call(module, index, {}, (), Completion("", "stop"), None if failed else {"x": 1}))
    return Trajectory(example, rollout, tuple(calls), {}, reward, ending)


def test_calls_are_grouped_by_example_module_and_invocation_index() -> None:
    runs = [trajectory(["a", "b", "a"], 1.0), trajectory(["a", "b"], 0.0), trajectory(["a"], 0.5, example="f")]
    groups = {(g.example_id, g.module, g.index): g.rewards_C for g in form_groups(runs, {"a", "b"}, Rewards())}
    assert groups == {("e", "a", 0): [1.0, 0.0], ("e", "b", 0): [1.0, 0.0], ("e", "a", 1): [1.0], ("f", "a", 0): [0.5]}


def test_truncate_drops_calls_that_some_run_lacks() -> None:
    runs = [trajectory(["a", "a"], 1.0), trajectory(["a"], 0.0)]
    assert [(g.module, g.index) for g in form_groups(runs, {"a"}, Rewards(), "truncate")] == [("a", 0)]


def test_frozen_modules_form_no_groups() -> None:
    assert {g.module for g in form_groups([trajectory(["a", "b"], 1.0)], {"b"}, Rewards())} == {"b"}


def test_an_unreadable_completion_gets_the_format_reward_and_the_calls_before_it_the_failure_reward() -> None:
    rewards = Rewards(failure=0.1, format=-0.2)
    assert call_rewards(trajectory(["a", "b"], 0.0, "unparsed"), rewards) == [0.1, -0.2]
    assert call_rewards(trajectory(["a", "b"], 0.0, "tool_failed"), rewards) == [0.1, 0.1]


def test_one_interrupted_run_leaves_the_others_in_their_group() -> None:
    runs = [trajectory(["a", "b"], 1.0), trajectory(["a"], 0.0, "unparsed"), trajectory(["a", "b"], 0.0)]
    groups = {(g.module, g.index): g.rewards_C for g in form_groups(runs, {"a", "b"}, Rewards(format=-1.0))}
    assert groups == {("a", 0): [1.0, -1.0, 0.0], ("b", 0): [1.0, 0.0]}


@given(
    st.lists(
        st.tuples(st.lists(st.sampled_from("abc"), max_size=6), st.floats(0, 1), st.sampled_from("xyz")), max_size=12
    )
)
def test_every_call_is_in_exactly_one_group(drawn: list[tuple[list[str], float, str]]) -> None:
    runs = [trajectory(modules, reward, example=example) for modules, reward, example in drawn]
    groups = form_groups(runs, {"a", "b", "c"}, Rewards())
    assert sum(len(g.members) for g in groups) == sum(len(t.calls) for t in runs)
    assert len({(g.example_id, g.module, g.index) for g in groups}) == len(groups)
