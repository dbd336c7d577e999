"""A program whose module writes code, which a sandbox runs, until it does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from mmc.data import Example
from mmc.errors import InvalidError
from mmc.program.graph import Program
from mmc.program.run import RunSettings, run_all

HEAD = """\
mmc: 1
name: coder
models: {policy: {type: local, source: "path:nowhere"}}
tools: {python: {type: sandbox, timeout: 1}}
modules:
  write:
    model: policy
    template: echo.j2
    inputs: {text: str}
    outputs: {code: str}
program:
  inputs: {text: str, numbers: "list[int]"}
"""
STEPS = """\
  steps:
    - set: {wrong: ""}
    - repeat: 3
      until: "{{ not wrong }}"
      steps:
        - {call: write, with: {text: "{{ text }} {{ wrong }}"}}
        - {tool: python, with: {code: "{{ write.code }}", numbers: "{{ numbers }}"}, as: ran}
        - set: {wrong: "{{ ran.error or '' }}"}
  outputs: {answer: "{{ ran.value }}"}
"""
ROW = Example("a", {"text": "Add them up.", "numbers": [4, 5, 6]})


def test_code_that_fails_is_written_again(build: Callable[..., Program], scripted: Any) -> None:
    program = build(STEPS, HEAD)
    engine = scripted(
        lambda request: "sum(numbers)" if "NameError" in request.messages[-1].content else "total(numbers)"
    )
    (run,) = run_all(program, {"policy": engine}, [ROW], RunSettings("eval", 0, 0, 0.0))
    assert run.outputs == {"answer": 15} and len(run.calls) == 2
    assert [one.result["error"] is None for one in run.tools] == [False, True]
    assert run.tools[0].inputs == {"code": "total(numbers)", "numbers": [4, 5, 6]}


def test_a_step_without_code_is_said_beforehand(build: Callable[..., Program]) -> None:
    with pytest.raises(InvalidError, match="a sandbox needs `code` to run"):
        build(STEPS.replace('code: "{{ write.code }}", ', ""), HEAD)
