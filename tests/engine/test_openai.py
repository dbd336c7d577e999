"""What the direct engine does alone: prices of the spec, vLLM's constraints, what the machine lacks."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mmc.engine import open_engine
from mmc.engine.base import Choice, Completion, JsonSchema, Message, Regex, Request, Sampling
from mmc.engine.openai import OpenAiEngine
from mmc.errors import EnvironmentProblem, UsageError
from mmc.program.check import check
from mmc.spec import load
from mmc.spec.model import OpenAiModel, Price

from .remote_api import Api


def one(api: Api, constraint: Any = None, **keys: Any) -> Completion:
    engine = OpenAiEngine(OpenAiModel(type="openai", model="tiny", api_base=api.url, **keys))
    request = Request(("s", 0), (Message("user", "what colour?"),), Sampling(0.7, 5), constraint)
    try:
        return asyncio.run(engine.complete(request))
    finally:
        engine.close()


def test_what_calls_cost_is_the_specs_to_say(api: Api) -> None:
    found = one(api, price=Price(input=0.4, output=1.6))
    assert found.metadata["cost"] == pytest.approx(11 * 0.4e-6 + 3 * 1.6e-6)
    assert api.keys == {None}, "no key is sent where none is given"


@pytest.mark.parametrize(
    ("constraint", "sent"),
    [
        (Choice(("a", "b")), {"choice": ["a", "b"]}),
        (Regex("[0-9]+"), {"regex": "[0-9]+"}),
        (JsonSchema('{"type": "object"}'), {"json": {"type": "object"}}),
    ],
    ids=["choice", "regex", "json"],
)
def test_vllm_is_asked_for_any_constraint(api: Api, constraint: Any, sent: object) -> None:
    one(api, constraint, structured="vllm")
    assert api.bodies[0]["structured_outputs"] == sent


def test_a_missing_package_is_said_at_the_opening(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    with pytest.raises(EnvironmentProblem, match=r"pip install 'mmc\[remote\]'"):
        one(api)


SPEC = """\
mmc: 1
name: remote
models: {big: {type: openai, model: tiny, api_base: "http://127.0.0.1:1/v1", structured: STRUCTURED}}
modules:
  pick: {model: big, template: pick.j2, inputs: {q: str}, outputs: {a: {enum: [x, y]}}, constrain: true, train: false}
program: {inputs: {q: str}, steps: [{call: pick}], outputs: {a: "{{ pick.a }}"}}
"""


@pytest.fixture
def spec(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "pick.j2").write_text("{% user %}{{ q }}{% enduser %}")
    yield tmp_path / "spec.yaml"


def test_a_choice_needs_a_server_that_can_keep_to_it(spec: Path) -> None:
    spec.write_text(SPEC.replace("STRUCTURED", "vllm"))
    assert not [d for d in check(load(spec)) if d.severity == "error"]
    spec.write_text(SPEC.replace("STRUCTURED", "json"))
    (found,) = [d for d in check(load(spec)) if d.severity == "error"]
    assert "a `type: openai` model is constrained to JSON alone" in found.message


def test_adapters_are_refused_at_the_opening(spec: Path) -> None:
    spec.write_text(SPEC.replace("STRUCTURED", "vllm") + "adapters: {pick: some/folder}\n")
    with pytest.raises(UsageError, match="type: local"):
        open_engine(load(spec), "big")
