"""Fewest and most calls of a run, by the steps alone."""

from __future__ import annotations

from collections.abc import Callable
from math import inf

import pytest

from mmc.program.bounds import calls_of, total
from mmc.program.graph import Program

OUT = "  outputs: {out: 1}\n"
CALL = "{call: echo}"
CASES: list[tuple[str, int, float]] = [
    (CALL, 1, 1),
    (f"{CALL}, {CALL}", 2, 2),
    (f"{{if: '{{{{ text }}}}', steps: [{CALL}, {CALL}], else: [{CALL}]}}", 1, 2),
    (f"{{if: '{{{{ text }}}}', steps: [{CALL}]}}", 0, 1),
    (f"{{repeat: 3, steps: [{CALL}]}}", 3, 3),
    (f"{{repeat: 3, until: '{{{{ text }}}}', steps: [{CALL}]}}", 1, 3),
    (f"{{for: {{x: '{{{{ range(4) }}}}'}}, steps: [{CALL}]}}", 4, 4),
    (f"{{for: {{x: '{{{{ text.split() }}}}'}}, steps: [{CALL}]}}", 0, 64),
    (f"{{parallel: [[{CALL}], [{CALL}, {CALL}]]}}", 3, 3),
    (f"{{if: '{{{{ text }}}}', steps: [{{return: {{out: 1}}}}]}}, {CALL}", 0, 1),
    (f"{CALL}, {{return: {{out: 1}}}}, {CALL}", 1, 2),
    (f"{{repeat: 3, steps: [{CALL}, {{if: '{{{{ text }}}}', steps: [{{return: {{out: 1}}}}]}}]}}", 1, 3),
    (f"{{repeat: 30, steps: [{CALL}, {CALL}, {CALL}]}}", 90, 64),
]


@pytest.mark.parametrize(("steps", "low", "high"), CASES)
def test_bounds(build: Callable[..., Program], steps: str, low: int, high: float) -> None:
    spec = build(f"  steps: [{steps}]\n{OUT}").spec
    assert total(spec) == (low, high)
    assert calls_of(spec).low.get("echo", 0) == low and calls_of(spec).high["echo"] == high < inf
