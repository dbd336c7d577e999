"""The flowchart has an arrow for every way a run can take."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from mmc.cli import execute
from mmc.program.flowchart import mermaid
from mmc.program.graph import Program

REPO = Path(__file__).parents[2]
STEPS = """\
  steps:
    - call: echo
      as: first
    - if: "{{ first.said == \\"x\\" }}"
      steps: [{return: {out: 1}}]
      else:
        - repeat: 2
          until: "{{ done }}"
          steps: [{tool: shout, with: {text: "{{ text }}"}}, {set: {done: true}}]
    - parallel: [[{call: echo}], [{call: number}]]
  outputs: {out: 2}
"""


def test_every_way_is_an_arrow(build: Callable[..., Program]) -> None:
    lines = [line.strip() for line in mermaid(build(STEPS).spec).splitlines()]
    assert lines[0] == "flowchart TD"
    names = {m[1]: m[2] for line in lines if (m := re.match(r'(n\d+)\W+"(.*?)"\W+$', line))}
    arrows = {
        (names[m[1]], m[2] or "", names[m[3]])
        for line in lines
        if (m := re.match(r'(n\d+) -->(?:\|"(.*?)"\|)? (n\d+)', line))
    }
    test, loop = "{{ first.said == #quot;x#quot; }}", "up to 2 times, until {{ done }}"
    assert arrows == {
        ("inputs: text", "", "echo as first"),
        ("echo as first", "", test),
        (test, "yes", "return out"),
        (test, "no", loop),
        (loop, "again", "shout"),
        ("shout", "", "set done"),
        ("set done", "", loop),
        (loop, "then", "at the same time"),
        ("at the same time", "", "echo"),
        ("at the same time", "", "number"),
        ("echo", "", "outputs: out"),
        ("number", "", "outputs: out"),
    }


def test_the_command_prints_all_three(capsys: object) -> None:
    spec = str(REPO / "specs/helpdesk.yaml")
    for form in ("tree", "mermaid", "json"):
        assert execute(["graph", spec, "--format", form]) == 0
    said = capsys.readouterr().out  # type: ignore[attr-defined]
    assert "call write_query" in said and "flowchart TD" in said and '"steps": [{"call": "write_query"}' in said
