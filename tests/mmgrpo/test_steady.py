"""What keeps a training steady: resampling, early stop, resuming; whole weights, trees and distillation among it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from mmc.data import Example
from mmc.engine.local import LocalEngine
from mmc.errors import EnvironmentProblem
from mmc.mmgrpo.distill import DistillJob, DistillReport, distill
from mmc.mmgrpo.group import Rewards, form_groups
from mmc.mmgrpo.report import StepReport, alarm, sampled_tokens
from mmc.mmgrpo.train import TrainingJob, train
from mmc.program.graph import Program
from mmc.program.run import RunSettings, run_all
from mmc.spec import load
from mmc.spec.model import Distill, MmGrpo
from mmc.spec.optimizers import Teacher
from mmc.trie.decode import Decoder

from .lab import open_engine

SPEC = """\
mmc: 1
name: steady
models: {policy: {type: local, source: "path:nowhere"}}
modules:
  think: {model: policy, template: think.j2, inputs: {q: str}, outputs: {t: str}, max_tokens: 3}
  pick:
    {model: policy, template: pick.j2, inputs: {q: str, t: str}, outputs: {a: {enum: [red, green, blue]}}, constrain: true}
program:
  inputs: {q: str}
  steps: [{call: think}, {call: pick, with: {t: "{{ think.t }}"}}]
  outputs: {a: "{{ pick.a }}"}
metric: {type: exact, predicted: a, gold: gold}
"""
EXAMPLES = [Example(str(i), {"q": f"question {i}", "gold": ["red", "green", "blue"][i % 3]}) for i in range(9)]


@pytest.fixture
def program(tmp_path: Path) -> Program:
    (tmp_path / "think.j2").write_text("{% user %}{{ q }}{% enduser %}")
    (tmp_path / "pick.j2").write_text("{% user %}{{ q }} {{ t }}{% enduser %}")
    (tmp_path / "spec.yaml").write_text(SPEC)
    return Program.build(load(tmp_path / "spec.yaml"))


def job(program: Program, engine: LocalEngine, config: MmGrpo, folder: Path, **more: Any) -> TrainingJob:
    return TrainingJob(program, {"policy": engine}, EXAMPLES, EXAMPLES[:3], config, 0, folder, **more)


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_examples_without_spread_give_way_to_others_a_bounded_number_of_times(
    program: Program, engine: LocalEngine, tmp_path: Path
) -> None:
    # Two runs of three colours often agree, so many examples of a step have no spread.
    train(job(program, engine, MmGrpo(steps=2, examples=3, rollouts=2), tmp_path / "plain"))
    train(job(program, engine, MmGrpo(steps=2, examples=3, rollouts=2, resample=4), tmp_path / "again"))
    plain, again = lines(tmp_path / "plain"), lines(tmp_path / "again")
    assert all(line["resampled"] == 0 for line in plain) and sum(line["resampled"] for line in again) > 0
    assert again[0]["groups"] == plain[0]["groups"] + 2 * again[0]["resampled"], "two modules, so two groups an example"
    useful = [round(found[0]["useful"] * found[0]["groups"]) for found in (plain, again)]
    assert useful[1] > useful[0]
    assert again[0]["resampled"] <= 4 * 3


def test_patience_ends_a_training_and_is_said(program: Program, engine: LocalEngine, tmp_path: Path) -> None:
    said: list[str] = []
    config = MmGrpo(steps=12, examples=3, rollouts=2, learning_rate=1e-9, evaluate_every=1, patience=2)
    result = train(job(program, engine, config, tmp_path / "t", say=said.append))
    assert result.steps == 3, "the first is the best, two more were no better"
    assert any("stopped after step 3: dev was best after step 1" in line for line in said)
    assert train(job(program, fresh_like(engine), config, tmp_path / "t")).steps == 3, "a resume does not go on"


def fresh_like(engine: LocalEngine) -> LocalEngine:
    return open_engine(Path(engine.lm.model.config._name_or_path))


class Stop(Exception):
    pass


@pytest.mark.parametrize(
    "keys",
    [
        {"full": True, "learning_rate": 1e-3},
        {"tree": [2, 2], "adapters": "module"},
        {"lora": {"rank": 2, "dropout": 0.3}, "inner_epochs": 2, "schedule": "cosine", "warmup": 1},
        {"resample": 1, "evaluate_every": 2, "kl": 0.05, "grouping": {"uneven": "fill"}},
        {"lora": {"rank": 2, "dora": True}, "loss": "cispo"},
    ],
    ids=lambda keys: ",".join(keys),
)
def test_a_training_stopped_after_any_step_ends_with_the_same_bytes(
    program: Program, tiny_model_dir: Path, tmp_path: Path, keys: dict[str, Any]
) -> None:
    config = MmGrpo(steps=4, examples=3, rollouts=4, **keys)
    whole = train(job(program, open_engine(tiny_model_dir), config, tmp_path / "a" / "weights"))

    def stop(report: StepReport) -> None:
        if report.step in (1, 3):
            raise Stop

    folder = tmp_path / "b" / "weights"
    for _ in range(2):
        with pytest.raises(Stop):
            train(job(program, open_engine(tiny_model_dir), config, folder, on_step=stop))
    parts = train(job(program, open_engine(tiny_model_dir), config, folder))
    for module, path in whole.adapters.items():
        names = sorted(p.name for p in path.iterdir())
        assert names == sorted(p.name for p in parts.adapters[module].iterdir())
        for name in names:
            assert (path / name).read_bytes() == (parts.adapters[module] / name).read_bytes(), name
    plain = [{k: v for k, v in line.items() if "seconds" not in k} for line in lines(tmp_path / "a" / "weights")]
    assert plain == [{k: v for k, v in line.items() if "seconds" not in k} for line in lines(folder)]


def test_whole_weights_that_were_trained_load_in_plain_transformers(
    program: Program, engine: LocalEngine, tmp_path: Path
) -> None:
    config = MmGrpo(steps=2, examples=3, rollouts=4, full=True, learning_rate=1e-2)
    result = train(job(program, engine, config, tmp_path / "t"))
    model = AutoModelForCausalLM.from_pretrained(result.adapters["pick"])
    base = AutoModelForCausalLM.from_pretrained(Path(engine.lm.model.config._name_or_path))
    pairs = zip(model.parameters(), base.parameters(), strict=True)
    assert any((a - b).abs().max() > 1e-4 for a, b in pairs)
    settings = RunSettings("eval", 0, 0, 0.0)
    here = run_all(result.program, {"policy": engine}, EXAMPLES, settings)
    other = open_engine(result.adapters["pick"])
    there = run_all(program, {"policy": other}, EXAMPLES, settings)
    assert [t.outputs for t in here] == [t.outputs for t in there]


def test_a_distillation_stopped_after_a_step_ends_with_the_same_bytes(
    program: Program, tiny_model_dir: Path, tmp_path: Path
) -> None:
    config = Distill(examples=9, rollouts=4, batch=4, epochs=2)

    def stage(folder: Path, engine: LocalEngine, **more: Any) -> DistillJob:
        return DistillJob(program, {"policy": engine}, EXAMPLES, config, 0, folder, **more)

    def stop(report: DistillReport) -> None:
        if report.step == 2:
            raise Stop

    whole = distill(stage(tmp_path / "a" / "distill", open_engine(tiny_model_dir)))
    with pytest.raises(Stop):
        distill(stage(tmp_path / "b" / "distill", open_engine(tiny_model_dir), on_step=stop))
    parts = distill(stage(tmp_path / "b" / "distill", open_engine(tiny_model_dir)))
    assert whole.passed == parts.passed > 0
    name = "adapter_model.safetensors"
    assert (whole.adapters["pick"] / name).read_bytes() == (parts.adapters["pick"] / name).read_bytes()


def test_runs_for_which_memory_runs_out_do_not_count_as_failed(
    program: Program, engine: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Decoder, "step", lambda decoder: torch.empty(2**60))
    with pytest.raises(EnvironmentProblem, match="out of memory in sampling"):
        run_all(program, {"policy": engine}, EXAMPLES[:2], RunSettings("eval", 0, 0, 0.0))


def test_distillation_tells_how_far_its_runs_are(program: Program, tiny_model_dir: Path, tmp_path: Path) -> None:
    """They can take longer than the steps. Those of teachers count too."""
    told: list[object] = []
    config = Distill(
        examples=3, rollouts=2, batch=4, epochs=1, threshold=0.0, teachers=[Teacher(model="policy", rollouts=3)]
    )
    distill(
        DistillJob(
            program,
            {"policy": open_engine(tiny_model_dir)},
            EXAMPLES,
            config,
            0,
            tmp_path / "distill",
            on_run=lambda done, runs: told.append((done, runs)),
            on_lessons=lambda steps: told.append(steps),
            on_step=lambda report: told.append(report.steps - report.step),
        )
    )
    runs, (steps, *left) = told[:16], told[16:]
    assert runs == [(done, 15) for done in range(16)]
    assert isinstance(steps, int) and left == list(range(steps))[::-1]


def test_a_modules_weight_counts_in_distillation_too(program: Program, tiny_model_dir: Path, tmp_path: Path) -> None:
    found = []
    for weight in (1.0, 5.0):
        text = program.loaded.text.replace("max_tokens: 3}", f"max_tokens: 3, train: {{weight: {weight}}}}}")
        weighted = replace(program, loaded=program.loaded.reparsed(text))
        config = Distill(examples=9, rollouts=4, batch=4, epochs=1)
        engines = {"policy": open_engine(tiny_model_dir)}
        result = distill(DistillJob(weighted, engines, EXAMPLES, config, 0, tmp_path / str(weight)))
        found.append((result.adapters["think"] / "adapter_model.safetensors").read_bytes())
    assert found[0] != found[1]


def test_runs_of_a_tree_share_what_comes_before_they_branch(program: Program, engine: LocalEngine) -> None:
    settings = RunSettings("weights", 0, 0, 1.0, tree=(3, 2))
    runs = run_all(program, {"policy": engine}, EXAMPLES[:2], settings, rollouts=6)
    for example in EXAMPLES[:2]:
        mine = [run for run in runs if run.example_id == example.id]
        first = [run.calls[0].completion.ids_T for run in mine]
        assert first[0] == first[1] and first[2] == first[3] and first[4] == first[5] and len(set(first)) > 1
        assert [run.calls[1].path for run in mine] == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)]
    groups = form_groups(runs, ["think", "pick"], Rewards())
    sizes = sorted(len(group.members) for group in groups if group.module == "think")
    assert sizes == [len({run.calls[0].path for run in runs if run.example_id == e.id}) for e in EXAMPLES[:2]]
    for group in groups:
        prompts = {member.calls[0].completion.prompt_ids_T for member in group.members}
        assert len(prompts) == 1, "calls from one state have one prompt"
    drawn = sum(len(run.calls[0].completion.ids_T) for run in runs if run.rollout % 2 == 0)
    assert sampled_tokens(runs) == drawn + sum(len(run.calls[1].completion.ids_T) for run in runs)


def test_a_rising_share_of_unreadable_completions_is_said() -> None:
    steady, rising = [0.1] * 10, [0.0] * 5 + [0.3] * 5
    assert alarm(steady) is None and alarm(rising[:9]) is None
    assert "0% of runs in the first 5 steps, 30% in the last 5" in (alarm(rising) or "")


def test_the_audit_is_kept_and_said_before_the_first_update(
    program: Program, engine: LocalEngine, tmp_path: Path
) -> None:
    said: list[str] = []
    hopeless = [replace(e, row={**e.row, "gold": "black"}) for e in EXAMPLES]
    one = job(program, engine, MmGrpo(steps=1, examples=3, rollouts=4), tmp_path / "t", say=said.append)
    train(replace(one, train=hopeless))
    assert "training cannot work" in said[0] and "No run scores" in said[0]
    kept = json.loads((tmp_path / "t/audit.json").read_text())
    assert kept["flat"] == 1.0 and kept["findings"] == said
