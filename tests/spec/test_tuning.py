from __future__ import annotations

from pathlib import Path

import pytest

from mmc.compile import CompileJob, compile_spec
from mmc.errors import InvalidError
from mmc.spec import load
from mmc.spec.tuning import adapter_of, tuning_problems

SPEC = """\
mmc: 1
name: tuned
models: {p: {type: local, source: "path:x"}, q: {type: local, source: "path:x"}, r: {type: litellm, model: openai/x}}
modules:
  a: {model: p, template: t.j2, inputs: {}, outputs: {x: str}}
  b: {model: p, template: t.j2, inputs: {}, outputs: {x: str}}
  c: {model: q, template: t.j2, inputs: {}, outputs: {x: str}, train: false}
program: {inputs: {}, steps: [{call: a}, {call: b}, {call: c}], outputs: {x: "{{ c.x }}"}}
data: {train: {file: r.jsonl}, dev: {file: r.jsonl}, test: {file: r.jsonl}}
metric: {type: exact, predicted: x, gold: g}
compile: {strategy: [weights], weights: WEIGHTS}
"""

PROBLEMS = [
    ("{adapters: {one: [a]}}", "", "'b' stands in no group"),
    ("{adapters: {one: [a, b], two: [b]}}", "", "'b' stands in two groups"),
    ("{adapters: {one: [a, b, c]}}", "", "'c' is not trained"),
    ("{}", "{model: p, template: t.j2, inputs: {}, outputs: {x: str}, train: {learning_rate: 1e-3}}", "of its own"),
    ("{}", "{model: q, template: t.j2, inputs: {}, outputs: {x: str}}", "use different models (p, q)"),
    ("{}", "{model: r, template: t.j2, inputs: {}, outputs: {x: str}}", "'b' runs on a remote model"),
]


def write(tmp_path: Path, weights: str, module_b: str) -> Path:
    text = SPEC.replace("WEIGHTS", weights)
    if module_b:
        text = "".join(f"  b: {module_b}\n" if line.startswith("  b:") else line for line in text.splitlines(True))
    (tmp_path / "t.j2").write_text("{% user %}hello{% enduser %}")
    (tmp_path / "r.jsonl").write_text('{"g": "x"}\n')
    (tmp_path / "spec.yaml").write_text(text)
    return tmp_path / "spec.yaml"


@pytest.mark.parametrize(("weights", "module_b", "expected"), PROBLEMS)
def test_what_cannot_be_tuned_is_said_with_its_line_before_anything_is_loaded(
    tmp_path: Path, weights: str, module_b: str, expected: str
) -> None:
    with pytest.raises(InvalidError) as error:
        compile_spec(CompileJob(load(write(tmp_path, weights, module_b)), tmp_path / "build", tmp_path / "runs"))
    assert "spec.yaml:11:" in str(error.value) and expected in str(error.value)


def test_named_groups_share_an_adapter(tmp_path: Path) -> None:
    spec = load(write(tmp_path, "{adapters: {one: [b, a]}}", "")).spec
    assert not tuning_problems(spec, spec.compile.weights)
    assert adapter_of(spec, spec.compile.weights) == {"a": "one", "b": "one"}
