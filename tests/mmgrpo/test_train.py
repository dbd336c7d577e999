"""The whole loop with a tiny model: learning, the best adapter, batches and rates."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mmc.data import Example
from mmc.engine.local import LocalEngine
from mmc.errors import UsageError
from mmc.mmgrpo.policy import learning_rate
from mmc.mmgrpo.rollout import take
from mmc.mmgrpo.train import TrainingJob, train, train_step
from mmc.program.graph import Program
from mmc.program.run import RunSettings
from mmc.spec import load
from mmc.spec.model import MmGrpo
from mmc.trie.budget import LEAST, MOST_ON_CPU

SPEC = """\
mmc: 1
name: train
models: {policy: {type: local, source: "path:nowhere"}}
modules:
  think: {model: policy, template: think.j2, inputs: {q: str}, outputs: {t: str}, max_tokens: 5}
  pick:
    {model: policy, template: pick.j2, inputs: {q: str, t: str}, outputs: {a: {enum: [red, green, blue]}}, constrain: true}
program:
  inputs: {q: str}
  steps:
    - repeat: 2
      until: "{{ think.t < 'a' }}"
      steps: [{call: think}]
    - {call: pick, with: {t: "{{ think.t }}"}}
  outputs: {a: "{{ pick.a }}"}
metric: {type: exact, predicted: a, gold: gold}
"""
EXAMPLES = [Example(str(i), {"q": f"question {i}", "gold": ["red", "green", "blue"][i % 3]}) for i in range(6)]


@pytest.fixture
def program(tmp_path: Path) -> Program:
    (tmp_path / "think.j2").write_text("{% user %}{{ q }}{% enduser %}")
    (tmp_path / "pick.j2").write_text("{% user %}{{ q }} {{ t }}{% enduser %}")
    (tmp_path / "spec.yaml").write_text(SPEC)
    return Program.build(load(tmp_path / "spec.yaml"))


@pytest.mark.parametrize("adapters", ["shared", "module"])
def test_training_learns_and_leaves_adapters(
    program: Program, engine: LocalEngine, tmp_path: Path, adapters: str
) -> None:
    config = MmGrpo(steps=25, examples=6, rollouts=8, learning_rate=0.02, adapters=adapters)  # type: ignore[arg-type]
    rewards: list[float] = []
    one = [Example(e.id, {**e.row, "gold": "green"}) for e in EXAMPLES]
    job = TrainingJob(
        program, {"policy": engine}, one, one, config, 0, tmp_path / "t", on_step=lambda r: rewards.append(r.reward)
    )
    result = train(job)
    assert sum(rewards[-5:]) / 5 > 0.95 and rewards[0] < 0.7
    folders = {path.name for path in result.adapters.values()}
    assert folders == ({"shared"} if adapters == "shared" else {"think", "pick"})
    lines = [json.loads(line) for line in (tmp_path / "t/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 26))
    assert max(line["drift"] for line in lines) < 1e-3


def test_the_best_adapter_on_dev_is_what_is_returned(program: Program, engine: LocalEngine, tmp_path: Path) -> None:
    config = MmGrpo(steps=4, examples=3, rollouts=4, learning_rate=0.05, evaluate_every=1)
    result = train(TrainingJob(program, {"policy": engine}, EXAMPLES, EXAMPLES, config, 0, tmp_path / "t"))
    lines = [json.loads(line) for line in (tmp_path / "t/metrics.jsonl").read_text().splitlines()]
    from mmc.program.evaluate import evaluate

    settings = RunSettings("weights-dev", 0, 0, 0.0)
    assert evaluate(result.program, {"policy": engine}, EXAMPLES, settings).interval.mean == max(
        x["dev"] for x in lines
    )


def test_nothing_to_train_is_said(program: Program, engine: LocalEngine, tmp_path: Path) -> None:
    loaded = program.loaded.reparsed(program.loaded.text.replace("max_tokens: 5", "max_tokens: 5, train: false"))
    frozen = replace(
        program, loaded=loaded.reparsed(loaded.text.replace("constrain: true", "constrain: true, train: false"))
    )
    with pytest.raises(UsageError, match="no module is trained"):
        train(TrainingJob(frozen, {"policy": engine}, EXAMPLES, EXAMPLES, MmGrpo(steps=1), 0, tmp_path / "t"))


def test_batches_are_epochs_and_depend_on_the_position_alone() -> None:
    steps, position = [], 0
    for _ in range(6):
        chosen, position = take(EXAMPLES, 4, position, seed=1)
        steps.append((chosen, position))
    assert all(len({e.id for e in chosen}) == 4 for chosen, _ in steps)
    assert sum(e.id == "0" for chosen, _ in steps for e in chosen) in (3, 4, 5)
    before = steps[2][1]
    assert take(EXAMPLES, 4, before, seed=1)[0] == steps[3][0] != take(EXAMPLES, 4, before, seed=2)[0]


def test_an_epoch_that_the_batch_divides_holds_every_example_once() -> None:
    first, position = take(EXAMPLES, 3, 0, seed=1)
    second, position = take(EXAMPLES, 3, position, seed=1)
    assert position == 6 and sorted(e.id for e in [*first, *second]) == [e.id for e in EXAMPLES]


def test_the_learning_rate_warms_up_and_falls_to_its_floor() -> None:
    for schedule, half in (("linear", 0.55), ("cosine", 0.55), ("constant", 1.0)):
        config = MmGrpo(warmup=2, schedule=schedule, learning_rate=1.0)  # type: ignore[arg-type]
        rates = [learning_rate(config, step, 13) for step in range(13)]
        assert rates[:3] == [0.5, 1.0, 1.0] and rates[7] == pytest.approx(half)
        assert rates[-1] == pytest.approx(1.0 if schedule == "constant" else 0.1)


def test_a_resumed_training_keeps_the_bound_that_the_first_memory_gave(
    program: Program, engine: LocalEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, bounds = MmGrpo(steps=2, examples=3, rollouts=3), []

    def step(job: TrainingJob, *rest: Any) -> Any:
        bounds.append(job.config.forest_tokens)
        if len(bounds) == 2:
            raise KeyboardInterrupt
        return train_step(job, *rest)

    monkeypatch.setattr("mmc.mmgrpo.train.train_step", step)
    job = TrainingJob(program, {"policy": engine}, EXAMPLES, EXAMPLES, config, 0, tmp_path / "t")
    monkeypatch.setattr("mmc.engine.local.free_bytes", lambda device: 1 << 40)
    with pytest.raises(KeyboardInterrupt):
        train(job)
    monkeypatch.setattr("mmc.engine.local.free_bytes", lambda device: 0)
    train(job)
    assert bounds == [MOST_ON_CPU[4]] * 3
    train(replace(job, folder=tmp_path / "other"))
    train(replace(job, folder=tmp_path / "set", config=MmGrpo(steps=1, examples=3, rollouts=3, forest_tokens=77)))
    assert bounds[3:] == [LEAST, LEAST, 77]
