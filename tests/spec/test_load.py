from __future__ import annotations

from pathlib import Path

import pytest

from mmc.errors import EnvironmentProblem, InvalidError
from mmc.spec import load

GOOD = """\
mmc: 1
name: demo
models:
  policy: {type: local, source: "path:model"}
modules:
  answer:
    model: policy
    template: answer.j2
    inputs: {question: str}
    outputs: {answer: str}
program:
  inputs: {question: str}
  steps:
    - call: answer
  outputs: {answer: "{{ answer.answer }}"}
"""


def spec_file(tmp_path: Path, text: str = GOOD) -> Path:
    path = tmp_path / "spec.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def problems(path: Path, *overrides: str) -> str:
    with pytest.raises(InvalidError) as caught:
        load(path, overrides)
    return str(caught.value).replace(str(path.parent) + "/", "")


def test_a_good_spec_loads_and_knows_its_place(tmp_path: Path) -> None:
    loaded = load(spec_file(tmp_path))
    assert loaded.spec.name == "demo"
    assert loaded.folder == tmp_path
    assert loaded.diagnostic(("modules", "answer", "template"), "x").line == 8


def test_scalars_follow_yaml_1_2(tmp_path: Path) -> None:
    text = GOOD.replace("name: demo", "name: no") + "compile: {weights: {learning_rate: 1e-5}}\n"
    loaded = load(spec_file(tmp_path, text))
    assert loaded.spec.name == "no"
    assert loaded.spec.compile.weights.learning_rate == 1e-5


def test_a_build_folder_loads_like_a_spec(tmp_path: Path) -> None:
    (tmp_path / "v1").mkdir()
    (tmp_path / "v1" / "program.yaml").write_text(GOOD)
    assert load(tmp_path / "v1").spec.name == "demo"


def test_overrides_are_in_the_text(tmp_path: Path) -> None:
    overrides = ["compile.weights.steps=3", "modules.answer.max_tokens=9", "name=other"]
    loaded = load(spec_file(tmp_path), overrides)
    assert (loaded.spec.compile.weights.steps, loaded.spec.modules["answer"].max_tokens) == (3, 9)
    assert "steps: 3" in loaded.text and loaded.spec.name == "other"


BROKEN = [
    ("name: demo", "nme: demo", "spec.yaml:2:1: error: unknown key 'nme'. Did you mean 'name'?"),
    ("mmc: 1", "mmc: 2", "spec.yaml:1:6: error: this spec is of version 2; mmc "),
    (
        "type: local",
        "type: locl",
        "spec.yaml:4:18: error: unknown type 'locl'; known are local, litellm. Did you mean 'local'?",
    ),
    ("    model: policy\n", "", "spec.yaml:6:3: error: the key 'model' is missing here"),
    (
        "template: answer.j2",
        "templte: answer.j2",
        "spec.yaml:8:5: error: unknown key 'templte'. Did you mean 'template'?",
    ),
    ("- call: answer", "- cal: answer", "spec.yaml:14:7: error: a step needs one of: call, tool, set"),
    ("outputs: {answer: str}", "outputs: {}", "spec.yaml:10:14: error: `outputs` needs 1 or more, has 0"),
    ("mmc: 1", "mmc: 1\nmmc: 1", "spec.yaml:2:1: error: the key 'mmc' stands here twice"),
    ("steps:", "steps: [", "error: not valid YAML"),
    ("inputs: {question: str}\n    outputs", "inputs: &a {question: *a}\n    outputs", "a cycle"),
    ("name: demo", "name: demo\ntools: {t: {type: bm26}}", "spec.yaml:3:19: error: unknown type 'bm26'"),
    (
        "- call: answer",
        "- call: answer\n      wiht: {}",
        "spec.yaml:15:7: error: unknown key 'wiht'. Did you mean 'with'?",
    ),
]


@pytest.mark.parametrize(("old", "new", "expected"), BROKEN)
def test_a_broken_spec_says_where_and_what(tmp_path: Path, old: str, new: str, expected: str) -> None:
    assert old in GOOD
    assert expected in problems(spec_file(tmp_path, GOOD.replace(old, new, 1)))


def test_all_problems_are_said_at_once_in_order_with_a_caret(tmp_path: Path) -> None:
    text = GOOD.replace("name: demo", "nam: demo").replace("model: policy", "modl: policy")
    found = problems(spec_file(tmp_path, text))
    lines = [line for line in found.splitlines() if line.startswith("spec.yaml:")]
    assert len(lines) == 2 and lines == sorted(lines, key=lambda line: int(line.split(":")[1]))
    assert "    nam: demo\n    ^\n" in found


def test_a_missing_file_names_its_neighbour(tmp_path: Path) -> None:
    spec_file(tmp_path)
    assert "there is no such file. Did you mean 'spec.yaml'?" in problems(tmp_path / "spce.yaml")


def test_bad_overrides_name_themselves(tmp_path: Path) -> None:
    path = spec_file(tmp_path)
    assert "write it as a.b=value" in problems(path, "name")
    assert "it was set by --set compile.weihts.steps=3" in problems(path, "compile.weihts.steps=3")
    assert "no mapping at 'name'" in problems(path, "name.x=3")


def test_an_unset_variable_is_an_environment_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MMC_NOWHERE", raising=False)
    loaded = load(spec_file(tmp_path))
    with pytest.raises(EnvironmentProblem, match="MMC_NOWHERE is not set"):
        loaded.resolve("${env:MMC_NOWHERE}/x")
    monkeypatch.setenv("MMC_NOWHERE", str(tmp_path))
    assert loaded.resolve("${env:MMC_NOWHERE}/x") == tmp_path / "x"
