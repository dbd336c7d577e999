from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmc.engine.base import Choice, JsonSchema, Regex
from mmc.errors import ParseError, RunFailure
from mmc.program.outputs import Outputs
from mmc.spec import load

SPEC = """\
mmc: 1
name: outputs
models: {policy: {type: local, source: "path:nowhere"}}
modules:
  one: {model: policy, template: t.j2, inputs: {}, outputs: {a: str}}
  pick: {model: policy, template: t.j2, inputs: {hits: list}, outputs: {a: {enum: "{{ hits }}"}}, constrain: true}
  both:
    {model: policy, template: t.j2, inputs: {}, outputs: {a: str, n: int, k: {enum: [x, Yy]}, l: "list[str]"}, constrain: true}
  lines:
    {model: policy, template: t.j2, inputs: {}, outputs: {a: str, n: int, b: bool}, format: sections, constrain: true}
program: {inputs: {}, steps: [{call: one}], outputs: {a: "{{ one.a }}"}}
"""


@pytest.fixture(scope="module")
def readers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outputs]:
    folder = tmp_path_factory.mktemp("outputs")
    path: Path = folder / "spec.yaml"
    path.write_text(SPEC)
    loaded = load(path)
    return {name: Outputs(loaded, name) for name in loaded.spec.modules}


def test_one_simple_output_is_the_whole_text(readers: dict[str, Outputs]) -> None:
    assert readers["one"].parse(" hello \n", {}) == {"a": "hello"}
    assert readers["one"].constraint({}) is None


def test_an_enum_over_the_inputs(readers: dict[str, Outputs]) -> None:
    pick = readers["pick"]
    options = pick.options({"hits": ["Red", "Blue", "Red"]})
    assert options == {"a": ("Red", "Blue")}
    assert pick.constraint(options) == Choice(("Red", "Blue"))
    assert pick.parse("blue", options) == {"a": "Blue"}
    with pytest.raises(ParseError, match="none of the 2 options"):
        pick.parse("green", options)
    with pytest.raises(RunFailure, match="no options"):
        pick.options({"hits": []})


def test_partial_credit_names_what_could_be_read(readers: dict[str, Outputs]) -> None:
    both = readers["both"]
    with pytest.raises(ParseError) as caught:
        both.parse('noise {"a": "t", "n": "many", "k": "yy"} noise', both.options({}))
    assert caught.value.partial == {"a": "t", "k": "Yy"}
    assert "n: expected int" in str(caught.value) and "l is missing" in str(caught.value)


def test_constraints_of_json_and_sections(readers: dict[str, Outputs]) -> None:
    constraint = readers["both"].constraint(readers["both"].options({}))
    assert isinstance(constraint, JsonSchema)
    assert json.loads(constraint.schema)["properties"]["k"] == {"enum": ["x", "Yy"]}
    assert isinstance(readers["lines"].constraint({}), Regex)


words = st.text(st.characters(blacklist_categories=["Cs", "Cc", "Zl", "Zp"]), max_size=20).map(str.strip)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(words, st.integers(-(10**12), 10**12), st.sampled_from(["x", "Yy"]), st.lists(words, max_size=3), st.booleans())
def test_what_is_written_is_read_again(
    readers: dict[str, Outputs], a: str, n: int, k: str, listed: list[str], b: bool
) -> None:
    def round_trip(name: str, values: dict[str, Any]) -> None:
        reader = readers[name]
        options = reader.options({"hits": ["x", "Yy"]})
        assert reader.parse(reader.answer(values), options) == values

    round_trip("one", {"a": a})
    round_trip("pick", {"a": k})
    round_trip("both", {"a": a, "n": n, "k": k, "l": listed})
    round_trip("lines", {"a": a, "n": n, "b": b})
