"""Programs whose tools' answers are recorded, and repeated without the tools."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mmc.data import Example
from mmc.errors import UsageError
from mmc.program.graph import Program
from mmc.program.run import RunSettings, run_all
from mmc.spec import load
from tests.program.conftest import HEAD, ScriptedEngine

RECORDED = HEAD.replace(
    'shout: {type: python, function: "flow_tools:shout"}',
    'shout: {type: python, function: "flow_tools:shout", record: {file: tape.jsonl}}',
)
STEPS = """
  steps: [{tool: shout, with: {text: "{{ text }}"}}]
  outputs: {out: "{{ shout }}"}
"""


def ran(program: Program, text: str = "hi") -> tuple[str, Any]:
    engine = ScriptedEngine(lambda request: "")
    settings = RunSettings("run", 0, 0, 0.0, score=False)
    trajectory = run_all(program, {"policy": engine}, [Example("1", {"text": text})], settings)[0]  # type: ignore[dict-item]
    return trajectory.ending, trajectory.outputs or trajectory.error


def test_a_program_is_repeated_without_its_functions(build: Callable[..., Program], tmp_path: Path) -> None:
    assert ran(build(STEPS, RECORDED)) == ("done", {"out": "HI"})
    (row,) = [json.loads(line) for line in (tmp_path / "tape.jsonl").read_text().splitlines()]
    assert row["tool"] == "shout" and row["arguments"] == {"text": "hi"} and row["result"] == "HI"
    only_shout = ["tools={shout: {type: python, function: 'gone:away', record: {file: tape.jsonl}}}"]
    with pytest.raises(UsageError, match="--trust"):
        Program.build(load(tmp_path / "spec.yaml", [*only_shout]))
    # A replay opens no tool, so it needs neither the code nor the trust.
    same = "tools={shout: {type: python, function: 'flow_tools:shout', record: {file: tape.jsonl, mode: replay}}}"
    (tmp_path / "flow_tools.py").unlink()
    replayed = Program.build(load(tmp_path / "spec.yaml", [same]))
    assert ran(replayed) == ("done", {"out": "HI"})
    ending, error = ran(replayed, "unknown")
    assert ending == "tool_failed" and error.startswith("the tool shout failed: not recorded in ")


def test_where_answers_are_kept_is_no_part_of_what_a_run_depends_on(build: Callable[..., Program]) -> None:
    plain, recorded = build(STEPS).spec, build(STEPS, RECORDED).spec
    assert plain.model_dump() == recorded.model_dump() and plain.tools != recorded.tools
