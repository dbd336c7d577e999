"""A local model drawn by servers that speak as vLLM does. With vLLM itself: `make slow`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from aiohttp import web

from mmc.data import Example
from mmc.engine import open_engines, remote
from mmc.engine.adapters import LoraOptions
from mmc.engine.base import Choice, Completion, Message, Regex, Request, Sampling
from mmc.engine.local import LocalEngine, open_local
from mmc.engine.vllm import VllmEngine
from mmc.errors import EnvironmentProblem
from mmc.mmgrpo.train import TrainingJob, train
from mmc.program.graph import Program
from mmc.spec import load
from mmc.spec.lm import LocalModel
from mmc.spec.model import MmGrpo

from .vllm_api import Vllm

QUESTIONS = ["a", "what?", "what then?", "two and two"]


@pytest.fixture
def vllm(tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Vllm]:
    monkeypatch.setattr(remote, "FIRST_PAUSE", 0.01)
    server = Vllm(tiny_model_dir)
    yield server
    server.close()


def opened(folder: Path, sampler: object = None) -> Any:
    return open_local(LocalModel(type="local", source=f"path:{folder}", sampler=sampler), Path, {})


@pytest.fixture
def pair(vllm: Vllm, tiny_model_dir: Path) -> Iterator[tuple[VllmEngine, LocalEngine]]:
    """The same model with the same adapter, drawn by a server and here."""
    remote_, here = (
        opened(tiny_model_dir, {"type": "vllm", "servers": [vllm.url], "timeout": 20}),
        opened(tiny_model_dir),
    )
    for engine in (remote_, here):
        engine.adapters.create("stage.a", LoraOptions(4, 8, 0.0, "all-linear"), seed=1)
        change(engine, 0.3)
    yield remote_, here
    remote_.close()


def change(engine: LocalEngine, size: float) -> None:
    """Gives the adapter an effect, as an optimizer would: in place."""
    with torch.no_grad():
        for i, tensor in enumerate(engine.adapters.parameters("stage.a").values()):
            tensor.copy_(torch.randn(tensor.shape, generator=torch.Generator().manual_seed(i)) * size)


def asked(
    text: str = "a", number: int = 0, temperature: float = 0.0, adapter: str | None = None, **more: Any
) -> Request:
    return Request(("s", 0, number), (Message("user", text),), Sampling(temperature, 8), adapter=adapter, **more)


def draw(engine: LocalEngine, *requests: Request) -> list[Completion]:
    async def all_() -> list[Completion]:
        return await asyncio.gather(*map(engine.complete, requests))

    with engine.client():
        return asyncio.run(all_())


@pytest.mark.parametrize("adapter", [None, "stage.a"])
def test_what_a_server_draws_is_what_this_process_would(pair: Any, adapter: str | None) -> None:
    theirs, ours = (draw(e, *(asked(q, i, adapter=adapter) for i, q in enumerate(QUESTIONS))) for e in pair)
    for one, other in zip(theirs, ours, strict=True):
        assert (one.ids_T, one.prompt_ids_T, one.text, one.finish) == (
            other.ids_T,
            other.prompt_ids_T,
            other.text,
            other.finish,
        )
        assert one.logprobs_T == pytest.approx(other.logprobs_T, abs=1e-4)
        assert not one.exact and other.exact


def test_the_same_key_draws_the_same(pair: Any) -> None:
    theirs, _ = pair
    drawn = draw(theirs, *(asked("a", i, 0.5, "stage.a") for i in range(6)))
    assert len({one.ids_T for one in drawn}) > 1
    again = draw(theirs, *(asked("a", i, 0.5, "stage.a") for i in range(6)))
    assert [one.ids_T for one in again] == [one.ids_T for one in drawn], "the same key draws the same"


def test_an_adapter_is_given_when_it_has_changed_and_only_then(pair: Any, vllm: Vllm) -> None:
    theirs, ours = pair
    draw(theirs, *(asked(q, i, adapter="stage.a") for i, q in enumerate(QUESTIONS)))
    draw(theirs, asked("b", adapter="stage.a"))
    given = [body for name, body in vllm.asked if name == "load_lora_adapter"]
    assert len(given) == 1 and vllm.adapters == [given[0]["lora_name"]]
    for engine in pair:
        change(engine, 0.5)
    (one,), (other,) = draw(theirs, asked("b", adapter="stage.a")), draw(ours, asked("b", adapter="stage.a"))
    assert one.ids_T == other.ids_T
    second = [body for name, body in vllm.asked if name == "load_lora_adapter"][1]
    assert vllm.adapters == [second["lora_name"]], "the old one is taken back"
    assert not Path(given[0]["lora_path"]).exists() and Path(second["lora_path"]).exists()
    theirs.close()
    assert not Path(second["lora_path"]).exists()


def test_an_adapter_made_anew_under_its_name_is_another_one(pair: Any, vllm: Vllm) -> None:
    theirs, _ = pair
    draw(theirs, asked("b", adapter="stage.a"))
    version = theirs.adapters.version("stage.a")
    theirs.adapters.create("stage.a", LoraOptions(4, 8, 0.0, "all-linear"), seed=2)
    change(theirs, 0.3)
    assert theirs.adapters.version("stage.a")[1:] == version[1:], "by the counts of its tensors alone it is the same"
    draw(theirs, asked("b", 1, adapter="stage.a"))
    assert len([name for name, _ in vllm.asked if name == "load_lora_adapter"]) == 2


@pytest.mark.parametrize("constraint", [Choice(("red", "blue")), Regex("[a-z]{3}")])
def test_what_is_constrained_is_drawn_here(pair: Any, vllm: Vllm, constraint: Any) -> None:
    theirs, ours = pair
    request = asked("a", temperature=1.0, adapter="stage.a", constraint=constraint)
    (one,), (other,) = draw(theirs, request), draw(ours, request)
    assert (one.ids_T, one.logprobs_T) == (other.ids_T, other.logprobs_T) and one.exact and not vllm.asked


def test_a_server_that_says_other_probabilities_is_refused(pair: Any, vllm: Vllm) -> None:
    vllm.raw = True
    with pytest.raises(EnvironmentProblem, match="--logprobs-mode processed_logprobs"):
        draw(pair[0], asked())


@pytest.mark.parametrize("hangs", [False, True])
def test_an_adapter_that_is_not_taken_ends_in_an_error_with_its_cause(
    vllm: Vllm, tiny_model_dir: Path, hangs: bool
) -> None:
    async def refuse(name: str, body: Any) -> web.Response | None:
        if name != "load_lora_adapter":
            return None
        await asyncio.sleep(30 if hangs else 0)
        return web.json_response({"message": "LoRA is not enabled"}, status=400)

    vllm.before = refuse
    engine = opened(tiny_model_dir, {"type": "vllm", "servers": [vllm.url], "timeout": 3, "retries": 0})
    engine.adapters.create("a", LoraOptions(4, 8, 0.0, "all-linear"), seed=1)
    with pytest.raises(EnvironmentProblem, match="did not take the adapter") as error:
        draw(engine, asked(adapter="a"))
    assert ("timeout" if hangs else "LoRA is not enabled") in str(error.value) and "--enable-lora" in str(error.value)
    engine.close()


def test_another_server_answers_where_one_fails(vllm: Vllm, tiny_model_dir: Path) -> None:
    other, failed = Vllm(tiny_model_dir), 0

    async def fail(name: str, body: Any) -> web.Response | None:
        nonlocal failed
        if body.get("max_tokens", 1) == 1:
            return None
        failed += 1
        return web.Response(status=500)

    other.before = fail
    engine = opened(tiny_model_dir, {"type": "vllm", "servers": [vllm.url, other.url]})
    assert all(one.text is not None for one in draw(engine, *(asked(q, i) for i, q in enumerate(QUESTIONS))))
    assert failed
    engine.close()
    other.close()


def test_a_server_that_cannot_be_started_is_said(tiny_model_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(EnvironmentProblem, match="cannot be started"):
        opened(tiny_model_dir, {"type": "vllm", "start": str(tmp_path / "no/python")})
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 'No module named vllm'; exit 1\n")
    python.chmod(0o755)
    with pytest.raises(EnvironmentProblem, match=r"ended \(exit code 1\)(.|\n)*No module named vllm"):
        opened(tiny_model_dir, {"type": "vllm", "start": str(python)})


# --- training ---

SPEC = """\
mmc: 1
name: drawn
models: {policy: {type: local, source: "path:MODEL", sampler: {type: vllm, servers: ["URL"]}}}
modules:
  say: {model: policy, template: say.j2, inputs: {q: str}, outputs: {t: str}, max_tokens: 3}
  pick: {model: policy, template: say.j2, inputs: {q: str}, outputs: {a: {enum: [red, green]}}, constrain: true}
program:
  inputs: {q: str}
  steps: [{call: say}, {call: pick, with: {q: "{{ q }}{{ say.t }}"}}]
  outputs: {a: "{{ pick.a }}", t: "{{ say.t }}"}
metric: {type: exact, predicted: a, gold: gold}
"""


def test_a_training_draws_at_the_server_and_learns_here(vllm: Vllm, tiny_model_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "say.j2").write_text("{% user %}{{ q }}{% enduser %}")
    (tmp_path / "spec.yaml").write_text(SPEC.replace("MODEL", str(tiny_model_dir)).replace("URL", vllm.url))
    program = Program.build(load(tmp_path / "spec.yaml"))
    engines = open_engines(program.loaded)
    examples = [Example(str(i), {"q": f"q{i}", "gold": "red"}) for i in range(4)]
    config = MmGrpo(steps=3, examples=4, rollouts=4, learning_rate=1e-2, temperature=0.7)
    job = TrainingJob(program, engines, examples, [], config, 0, tmp_path / "weights")
    (tmp_path / "weights").mkdir()
    result = train(job)
    steps = [json.loads(line) for line in (tmp_path / "weights/metrics.jsonl").read_text().splitlines()]
    given = [body["lora_name"] for name, body in vllm.asked if name == "load_lora_adapter"]
    assert len(given) == 3 == len(set(given)) and all(name in given for name in vllm.adapters)
    drawn = [body["model"] for name, body in vllm.asked if name == "completions" and body["max_tokens"] > 1]
    assert [drawn.count(name) for name in given] == [16, 16, 16], "each step draws with the adapter of its time"
    assert all(step["drift"] < 1e-3 for step in steps), "the tiny model in float32 says the same on both sides"
    assert result.steps == 3
    for engine in engines.values():
        engine.close()
