from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from mmc.data import Example
from mmc.program.graph import Program
from mmc.program.run import RunSettings, run_all
from mmc.program.trajectory import Trajectory
from tests.program.conftest import HEAD

Build = Callable[..., Program]
OUT = "  outputs: {out: '{{ out }}'}\n"


def go(program: Program, scripted: Any, answer: Callable[..., str] | None = None, text: str = "hi") -> Trajectory:
    engine = scripted(answer or (lambda request: request.messages[-1].content))
    found = run_all(
        program, {"policy": engine}, [Example("e", {"text": text, "gold": "x"})], RunSettings("t", 0, 0, 1.0)
    )[0]
    assert engine.clients == 0, "every client is let go"
    return found


def out(trajectory: Trajectory) -> Any:
    assert trajectory.ending == "done", trajectory.error
    assert trajectory.outputs is not None
    return trajectory.outputs["out"]


def test_calls_tools_and_expressions(build: Build, scripted: Any) -> None:
    steps = """\
  steps:
    - call: echo
    - tool: shout
      with: {text: "{{ echo.said }}!"}
    - set: {out: {whole: "{{ [shout, 1] }}", mixed: "<{{ shout }}>"}}
"""
    assert out(go(build(steps + OUT), scripted)) == {"whole": ["HI!", 1], "mixed": "<HI!>"}


def test_if_else_and_return(build: Build, scripted: Any) -> None:
    steps = """\
  steps:
    - if: "{{ text == 'hi' }}"
      steps: [{return: {out: yes-it-is}}]
      else: [{set: {x: 1}}]
    - return: {out: other}
"""
    program = build(steps)
    assert out(go(program, scripted)) == "yes-it-is"
    assert out(go(program, scripted, text="no")) == "other"


def test_loops_nest_and_calls_are_numbered(build: Build, scripted: Any) -> None:
    steps = """\
  steps:
    - set: {out: []}
    - for: {word: "{{ text.split() }}"}
      steps:
        - repeat: 3
          until: "{{ out | length >= 3 }}"
          steps:
            - {call: echo, with: {text: "{{ word }}"}}
            - set: {out: "{{ out + [echo.said] }}"}
"""
    found = go(build(steps + OUT), scripted, text="a b")
    assert out(found) == ["a", "a", "a", "b"]
    assert [call.index for call in found.calls] == [0, 1, 2, 3]


def test_parallel_branches_merge_in_order_and_hold_a_client_each(build: Build, scripted: Any) -> None:
    steps = """\
  steps:
    - parallel:
        - [{call: echo, with: {text: one}, as: first}, {set: {last: 1}}]
        - [{call: echo, with: {text: two}, as: second}, {set: {last: 2}}]
    - set: {out: "{{ [first.said, second.said, last] }}"}
"""
    engine = scripted(lambda request: request.messages[-1].content)
    example, settings = Example("e", {"text": "hi", "gold": "x"}), RunSettings("t", 0, 0, 1.0)
    found = run_all(build(steps + OUT), {"policy": engine}, [example], settings)[0]
    assert out(found) == ["one", "two", 2]
    assert engine.clients == 0 and engine.most == 3
    assert len({request.key for request in engine.requests}) == 2


def test_an_unreadable_completion_interrupts_and_keeps_its_call(build: Build, scripted: Any) -> None:
    steps = "  steps:\n    - call: echo\n    - call: number\n    - set: {out: '{{ number.n }}'}\n"
    program = build(steps + OUT)
    found = go(program, scripted, lambda r: "seven")
    assert found.ending == "unparsed" and found.reward == 0.0
    assert [(c.module, c.outputs) for c in found.calls] == [("echo", {"said": "seven"}), ("number", None)]
    assert found.calls[1].messages[-1].content == "hi", "the failing call keeps its own prompt"
    assert go(program, scripted, lambda r: "seven<cut>").ending == "cut"


@pytest.mark.parametrize(("tool", "reason"), [("broken", "ValueError: no luck"), ("slow", "no answer within 0.05 s")])
def test_a_tool_that_fails_is_recorded(build: Build, scripted: Any, tool: str, reason: str) -> None:
    found = go(build(f"  steps:\n    - call: echo\n    - tool: {tool}\n    - set: {{out: 1}}\n" + OUT), scripted)
    assert found.ending == "tool_failed" and reason in str(found.error)
    assert len(found.calls) == 1 and found.tools[0].error == reason


def test_a_run_that_is_not_done_in_time_says_what_it_waited_for(build: Build, scripted: Any) -> None:
    steps = "  timeout: 0.2\n  steps:\n    - parallel:\n      - [{tool: late}]\n      - [{tool: later}]\n    - set: {out: 1}\n"
    late = '{type: python, function: "flow_tools:slow", timeout: 30}'
    head = HEAD.replace("tools:\n", f"tools:\n  late: {late}\n  later: {late}\n")
    found = go(build(steps + OUT, head), scripted)
    assert found.ending == "timeout"
    waited = r"; the tool late had not answered for 0\.\d s; the tool later had not answered for 0\.\d s"
    assert re.fullmatch(r"not done after 0\.2 seconds \(program\.timeout\)" + waited, str(found.error))


def test_the_limit_of_calls_interrupts(build: Build, scripted: Any) -> None:
    steps = "  max_calls: 5\n  steps:\n    - {repeat: 9, steps: [{call: echo}]}\n    - set: {out: 1}\n"
    found = go(build(steps + OUT), scripted)
    assert found.ending == "limit" and len(found.calls) == 5 and "max_calls" in str(found.error)


def test_an_expression_that_fails_is_recorded(build: Build, scripted: Any) -> None:
    found = go(build("  steps:\n    - set: {out: '{{ text.nothing.more }}'}\n" + OUT), scripted)
    assert found.ending == "failed" and "nothing" in str(found.error)


def test_runs_come_example_by_example_with_their_scores(build: Build, scripted: Any) -> None:
    program = build("  steps:\n    - call: echo\n    - set: {out: '{{ echo.said }}'}\n" + OUT)
    examples = [Example(str(i), {"text": f"t{i}", "gold": "t1"}) for i in range(3)]
    engine = scripted(lambda request: request.messages[-1].content)
    runs = run_all(program, {"policy": engine}, examples, RunSettings("t", 0, 0, 1.0), rollouts=2)
    assert [(t.example_id, t.rollout, t.reward) for t in runs] == [
        (str(i), r, float(i == 1)) for i in range(3) for r in range(2)
    ]
    assert len({request.key for request in engine.requests}) == 6
