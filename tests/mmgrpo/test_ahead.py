"""Runs drawn ahead, by a server, while earlier steps train: how old their weights are, and that nothing else changes."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mmc.data import Example
from mmc.engine import open_engines, remote
from mmc.engine.base import Engine
from mmc.errors import EnvironmentProblem, UsageError
from mmc.mmgrpo.train import TrainingJob, train
from mmc.mmgrpo.update import update
from mmc.program.graph import Program
from mmc.spec import load
from mmc.spec.model import MmGrpo

from ..engine.vllm_api import Vllm

SPEC = """\
mmc: 1
name: ahead
models: {policy: {type: local, source: "path:MODEL", sampler: {type: vllm, servers: ["URL"], timeout: 20}}}
modules:
  say: {model: policy, template: say.j2, inputs: {q: str}, outputs: {t: str}, max_tokens: 3}
  end: {model: policy, template: say.j2, inputs: {q: str}, outputs: {t: str}, max_tokens: 2}
program:
  inputs: {q: str}
  steps: [{call: say}, {call: end, with: {q: "{{ q }}{{ say.t }}"}}]
  outputs: {t: "{{ end.t }}"}
metric: {type: contains, predicted: t, gold: gold}
"""
EXAMPLES = [Example(str(i), {"q": f"q{i}", "gold": [chr(i) for i in range(33, 127)]}) for i in range(6)]
RUNS = 2 * 3  # examples x rollouts
Tensors = dict[str, torch.Tensor]


class Server(Vllm):
    """Remembers what was in each adapter that it was given, and which one drew each completion."""

    def __init__(self, folder: Path) -> None:
        self.given: dict[str, Tensors] = {}
        super().__init__(folder)

    def _load(self, name: str, path: str) -> None:
        self.given[name] = load_file(Path(path) / "adapter_model.safetensors")
        super()._load(name, path)

    @property
    def drew(self) -> dict[str, int]:
        """Adapter -> its completions, in the order of being given."""
        models = [
            body["model"] for name, body in self.asked if name == "completions" and "structured_outputs" not in body
        ]
        return {name: models.count(name) for name in self.given}


@pytest.fixture
def server(tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(remote, "FIRST_PAUSE", 0.01)
    server = Server(tiny_model_dir)
    yield server
    server.close()


@pytest.fixture
def job(server: Server, tiny_model_dir: Path, tmp_path: Path) -> Iterator[Callable[..., TrainingJob]]:
    """A training in a folder of its own; further settings as of `compile.weights`."""
    engines: dict[str, Engine] = {}

    def make(name: str, **settings: Any) -> TrainingJob:
        (tmp_path / "say.j2").write_text("{% user %}{{ q }}{% enduser %}")
        (tmp_path / "spec.yaml").write_text(SPEC.replace("MODEL", str(tiny_model_dir)).replace("URL", server.url))
        program = Program.build(load(tmp_path / "spec.yaml"))
        engines.update({} if engines else open_engines(program.loaded))
        usual = {"steps": 5, "examples": 2, "rollouts": 3, "learning_rate": 1e-2, "temperature": 0.9, "staleness": 1}
        config = MmGrpo.model_validate(usual | settings)
        return TrainingJob(program, engines, EXAMPLES, EXAMPLES[:2], config, 0, tmp_path / name)

    yield make
    for engine in engines.values():
        engine.close()


def versions(job: TrainingJob) -> tuple[TrainingJob, list[Tensors]]:
    """The job, and a list to which it will add its adapter after each step, as PEFT would write it."""
    seen: list[Tensors] = []
    engine: Any = job.engines["policy"]

    def on_step(report: Any) -> None:
        name = f"{job.folder.name}.shared"
        engine.adapters.save(name, job.folder / "seen")
        seen.append(load_file(job.folder / "seen/adapter_model.safetensors"))

    return replace(job, on_step=on_step), seen


def curves(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def same(one: Tensors, other: Tensors) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("staleness", [1, 2, 4])
def test_runs_are_drawn_by_weights_just_so_many_steps_old(
    job: Callable[..., TrainingJob], server: Server, staleness: int
) -> None:
    one, seen = versions(job("t", staleness=staleness))
    train(one)
    steps = one.config.steps
    assert not any(same(a, b) for i, a in enumerate(seen) for b in seen[:i]), "every step changes the weights"
    given = list(server.given.values())
    assert len(given) == steps - staleness, (
        "the start draws the first steps, the weights of the last steps draw nothing"
    )
    assert all(same(drew, trained) for drew, trained in zip(given[1:], seen, strict=False))
    assert list(server.drew.values()) == [2 * RUNS * (1 + staleness)] + [2 * RUNS] * (steps - staleness - 1)
    assert [line["staleness"] for line in curves(one.folder)] == [min(step, staleness) for step in range(steps)]
    drift = [line["drift"] for line in curves(one.folder)]
    assert drift[0] < 1e-3 < max(drift[1:]), "their age is seen in what training finds"


def test_an_update_is_made_while_the_next_runs_are_drawn(
    job: Callable[..., TrainingJob], server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawing, updates = threading.Event(), 0

    async def asked(name: str, body: Any) -> None:
        if name == "completions" and updates:
            drawing.set()

    def slow(*parts: Any) -> Any:
        nonlocal updates
        updates += 1
        if updates < 3:
            assert drawing.wait(20), "nothing is drawn before the update is over"
            drawing.clear()
        return update(*parts)

    server.before = asked
    monkeypatch.setattr("mmc.mmgrpo.policy.update", slow)
    train(job("t", steps=3))
    assert updates == 3


@pytest.mark.parametrize("staleness", [1, 2])
def test_a_training_that_is_killed_ends_as_one_that_ran_through(
    job: Callable[..., TrainingJob], staleness: int
) -> None:
    whole = job("whole", staleness=staleness, resample=1, evaluate_every=2)
    train(whole)

    def die(report: Any) -> None:
        raise KeyboardInterrupt

    broken = replace(whole, folder=whole.folder.with_name("broken"))
    for _ in range(whole.config.steps):
        with pytest.raises(KeyboardInterrupt):
            train(replace(broken, on_step=die))
    train(broken)
    ours, theirs = (
        load_file(folder / "final/shared/adapter_model.safetensors") for folder in (whole.folder, broken.folder)
    )
    assert same(ours, theirs)
    timed = ("seconds", "seconds_rollout", "seconds_update")
    ours_, theirs_ = (
        [{k: v for k, v in line.items() if k not in timed} for line in curves(one.folder)] for one in (whole, broken)
    )
    assert ours_ == theirs_
    kept = sorted(path.name for path in (broken.folder / "sampling").iterdir())
    assert kept == [f"{step:06d}" for step in range(4 - staleness, 5)], "what a resumed training may want, and no more"


def test_dev_is_scored_with_the_weights_of_now(job: Callable[..., TrainingJob], server: Server) -> None:
    one, seen = versions(job("t", steps=3, evaluate_every=1))
    train(one)
    scored = [
        server.given[body["model"]]
        for name, body in server.asked
        if name == "completions" and body.get("temperature") == 0 and "structured_outputs" not in body
    ]
    assert len(scored) == 3 * 2 * 2
    assert all(same(scored[i], seen[i // 4]) for i in range(12))


def test_what_fails_in_the_middle_ends_what_is_being_drawn(
    job: Callable[..., TrainingJob], server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = job("t", steps=4, rollouts=40)

    def fail(*parts: Any) -> None:
        raise MemoryError("full")

    monkeypatch.setattr("mmc.mmgrpo.policy.update", fail)
    with pytest.raises(EnvironmentProblem, match=r"out of memory in a step of training; .*\(full\)"):
        train(one)
    asked = len(server.asked)
    assert sum(server.drew.values()) < 4 * 80, "the runs of the second step are not all made"
    assert not any(thread.name.startswith("rollouts") for thread in threading.enumerate())
    monkeypatch.undo()
    train(replace(one, config=one.config.model_copy(update={"rollouts": 3}), folder=one.folder.with_name("after")))
    assert len(server.asked) > asked


def test_a_server_that_fails_while_it_draws_ahead_ends_the_training_with_its_cause(
    job: Callable[..., TrainingJob], server: Server
) -> None:
    from aiohttp import web

    async def refuse(name: str, body: Any) -> web.Response | None:
        if name == "load_lora_adapter" and len(server.given) == 1:
            return web.json_response({"message": "the disk is full"}, status=400)
        return None

    server.before = refuse
    one = job("t")
    with pytest.raises(Exception, match=r"did not take the adapter(.|\n)*the disk is full"):
        train(one)
    assert len(curves(one.folder)) == 2, "steps whose runs were there are made"


def test_what_cannot_be_drawn_ahead_is_refused(job: Callable[..., TrainingJob], tmp_path: Path) -> None:
    one = job("t")
    text = (tmp_path / "spec.yaml").read_text()
    (tmp_path / "plain.yaml").write_text(re.sub(", sampler: {[^}]*}", "", text))
    with pytest.raises(UsageError, match=r"`staleness` needs servers(.|\n)*'policy'"):
        train(replace(one, program=Program.build(load(tmp_path / "plain.yaml"))))
    forced = text.replace("outputs: {t: str}, max_tokens: 2", "outputs: {t: {enum: [e, f]}}, constrain: true")
    (tmp_path / "forced.yaml").write_text(forced)
    with pytest.raises(UsageError, match="'end' has `constrain: true`"):
        train(replace(one, program=Program.build(load(tmp_path / "forced.yaml"))))
    with pytest.raises(ValueError, match="`staleness` must be less than `steps`"):
        MmGrpo(steps=2, staleness=2)
