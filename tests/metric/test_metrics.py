from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mmc.errors import RunFailure, UsageError
from mmc.metric import Metric, make_metric
from mmc.spec import load

SPEC = """\
mmc: 1
name: m
models: {p: {type: local, source: "path:x"}}
modules: {a: {model: p, template: t.j2, inputs: {}, outputs: {x: str}}}
program: {inputs: {}, steps: [{call: a}], outputs: {x: "{{ a.x }}"}}
metric: METRIC
"""


def metric(tmp_path: Path, text: str, trust: bool = True) -> Metric:
    (tmp_path / "spec.yaml").write_text(SPEC.replace("METRIC", text))
    (tmp_path / "metric_code.py").write_text(
        "def half(outputs, example):\n    return 0.5\ndef bad(o, e):\n    return 7\n"
        "def hang(o, e):\n    import time\n    time.sleep(2)\n"
    )
    return make_metric(load(tmp_path / "spec.yaml"), trust)


CASES: list[tuple[str, Any, Any, float]] = [
    ("{type: exact, predicted: x, gold: g}", " Yes", "yes", 1.0),
    ("{type: exact, predicted: x, gold: g, normalize: false}", " Yes", "yes", 0.0),
    ("{type: exact, predicted: x, gold: g}", 3, 3, 1.0),
    ("{type: f1, predicted: x, gold: g}", "the cat sat", "a cat lay", 0.5),
    ("{type: f1, predicted: x, gold: g}", "red sea cat", ["red sea", "blue cat"], 6 / 7),
    ("{type: recall, predicted: x, gold: g}", ["a", "b", "c"], ["a", "d"], 0.5),
    ("{type: contains, predicted: x, gold: g}", "Dear ANN  Lee, from Rome", ["ann lee", "Paris"], 0.5),
    ("{type: contains, predicted: x, gold: g, absent: true}", "Ann and Bob", ["Ann", "Carl", "Dan", "ann "], 2 / 3),
    ("{type: contains, predicted: x, gold: g, absent: true}", "Ann", [], 1.0),
    ("{type: contains, predicted: x, gold: g}", ["red", "sea"], "red sea", 1.0),
    ("{type: python, function: 'metric_code:half'}", "x", "y", 0.5),
]


@pytest.mark.parametrize(("text", "predicted", "gold", "expected"), CASES)
def test_scores(tmp_path: Path, text: str, predicted: Any, gold: Any, expected: float) -> None:
    assert metric(tmp_path, text)({"x": predicted}, {"g": gold}).value == pytest.approx(expected)


def test_weighted_sums_are_clipped_and_name_their_parts(tmp_path: Path) -> None:
    part = "{name: %s, weight: %s, metric: {type: exact, predicted: x, gold: %s}}"
    text = "{type: weighted, of: [" + part % ("hit", 1, "g") + ", " + part % ("leak", -0.4, "h") + "]}"
    score = metric(tmp_path, text)({"x": "a"}, {"g": "a", "h": "a"})
    assert score.value == pytest.approx(0.6) and score.parts == {"hit": 1.0, "leak": 1.0}
    assert metric(tmp_path, text)({"x": "b"}, {"g": "a", "h": "b"}).value == 0.0


def test_a_metric_outside_0_and_1_fails_the_run(tmp_path: Path) -> None:
    with pytest.raises(RunFailure, match=r"gave 7, not a number in \[0, 1\]"):
        metric(tmp_path, "{type: python, function: 'metric_code:bad'}")({"x": 1}, {})


def test_a_metric_that_hangs_fails_the_run(tmp_path: Path) -> None:
    hanging = metric(tmp_path, "{type: python, function: 'metric_code:hang', timeout: 0.1}")
    with pytest.raises(RunFailure, match=r"metric_code:hang gave no score within 0\.1 s"):
        hanging({"x": 1}, {})


def test_python_needs_trust(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="if you trust it, add --trust"):
        metric(tmp_path, "{type: python, function: 'metric_code:half'}", trust=False)
