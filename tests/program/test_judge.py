"""LM judges of the metric: asked about finished runs, and no part of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from mmc.data import Example
from mmc.engine.base import Request
from mmc.program.graph import Program
from mmc.program.judge import score_again
from mmc.program.run import RunSettings, run_all
from mmc.program.trajectory import Trajectory
from mmc.search.demos import Found
from mmc.search.space import make_space
from mmc.spec.tuning import trained_modules

HEAD = """\
mmc: 1
name: judged
models:
  policy: {type: local, source: "path:nowhere"}
  judge: {type: local, source: "path:elsewhere"}
modules:
  echo: {model: policy, template: echo.j2, inputs: {text: str}, outputs: {said: str}}
  grade:
    model: judge
    template: echo.j2
    candidates: {}
    inputs: {text: str}
    outputs: {good: VERDICT}
metric:
  type: weighted
  of:
    - {name: same, weight: 0.5, metric: {type: exact, predicted: out, gold: gold}}
    - name: judge
      weight: 0.5
      metric: {type: judge, module: grade, with: {text: "{{ out }} for {{ example.gold }}"}OUT_OF}
program:
  inputs: {text: str}
  steps: [{call: echo}]
  outputs: {out: "{{ echo.said }}"}
"""
Build = Callable[..., Program]


def go(program: Program, scripted: Any, verdict: str, texts: tuple[str, ...] = ("hi",)) -> tuple[list[Trajectory], Any]:
    judge = scripted(lambda request: verdict)
    engines = {"policy": scripted(lambda request: request.messages[-1].content), "judge": judge}
    rows = [Example(str(i), {"text": text, "gold": "hi"}) for i, text in enumerate(texts)]
    found = run_all(program, engines, rows, RunSettings("t", 0, 0, 1.0))
    assert all(engine.clients == 0 for engine in engines.values()), "every client is let go"
    return found, judge


@pytest.mark.parametrize(
    ("kind", "out_of", "verdict", "reward"),
    [("bool", "", "yes", 1.0), ("bool", "", "no", 0.5), ("float", "", "0.5", 0.75), ("int", ", out_of: 5", "4", 0.9)],
)
def test_a_verdict_is_part_of_the_score(
    build: Build, scripted: Any, kind: str, out_of: str, verdict: str, reward: float
) -> None:
    program = build("", HEAD.replace("VERDICT", kind).replace("OUT_OF", out_of))
    (run,), judge = go(program, scripted, verdict)
    assert run.ending == "done", run.error
    assert run.reward == pytest.approx(reward) and run.scores == {"same": 1.0, "judge": pytest.approx(2 * reward - 1)}
    assert [call.module for call in run.calls] == ["echo"], "training sees the program's calls alone"
    assert [call.messages[-1].content for call in run.judged] == ["hi for hi"]
    assert judge.requests[0].sampling.temperature == 0.0


@pytest.mark.parametrize(("verdict", "said"), [("7", "said 7, not a number from 0 to 5"), ("well", "good: ")])
def test_a_judge_that_gives_no_verdict_fails_the_run_and_says_so(
    build: Build, scripted: Any, verdict: str, said: str
) -> None:
    program = build("", HEAD.replace("VERDICT", "int").replace("OUT_OF", ", out_of: 5"))
    (run,), _ = go(program, scripted, verdict)
    assert run.ending == "failed" and said in (run.error or "") and run.reward == 0.0
    assert run.calls, "its calls are kept"


def test_equal_questions_are_equal_requests(build: Build, scripted: Any) -> None:
    _, judge = go(build("", HEAD.replace("VERDICT", "bool").replace("OUT_OF", "")), scripted, "yes", ("a", "b", "a"))
    assert judge.requests[0] == judge.requests[2] != judge.requests[1]


def test_scoring_again_asks_again(build: Build, scripted: Any) -> None:
    program = build("", HEAD.replace("VERDICT", "float").replace("OUT_OF", ""))

    def answer(request: Request) -> str:
        return "none" if "odd" in request.messages[-1].content else "1"

    pairs = [({"out": "hi"}, {"gold": "hi"}), ({"out": "odd"}, {"gold": "hi"}), ({"out": "no"}, {"gold": "hi"})]
    assert score_again(program, {"policy": scripted(answer), "judge": scripted(answer)}, pairs) == [1.0, None, 0.5]


def test_a_judge_is_neither_searched_nor_trained(build: Build) -> None:
    program = build("", HEAD.replace("VERDICT", "bool").replace("OUT_OF", ""))
    space, _ = make_space(program, Found((), {}), 0, 0)
    assert set(space.variants) == {"echo"} and trained_modules(program.spec) == ["echo"]
