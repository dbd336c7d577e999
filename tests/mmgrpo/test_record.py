"""rollouts.jsonl: every call of a step with its reason, through kill and resume."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from mmc.data import Example
from mmc.engine.local import LocalEngine
from mmc.mmgrpo import checkpoint, record
from mmc.mmgrpo.train import TrainingJob, train
from mmc.mmgrpo.update import TrainingCall, update
from mmc.program.graph import Program
from mmc.spec import load
from mmc.spec.model import MmGrpo

SPEC = """\
mmc: 1
name: record
models: {policy: {type: local, source: "path:nowhere"}}
modules:
  think: {model: policy, template: think.j2, inputs: {q: str}, outputs: {t: str}, max_tokens: 4}
  note: {model: policy, template: note.j2, inputs: {t: str}, outputs: {n: str}, max_tokens: 3, train: false}
  pick:
    {model: policy, template: pick.j2, inputs: {q: str, t: str}, outputs: {a: {enum: [red, green, blue]}}, constrain: true}
program:
  inputs: {q: str}
  max_calls: 5
  steps:
    - {repeat: 3, until: "{{ think.t < 'M' }}", steps: [{call: think}, {call: note, with: {t: "{{ think.t }}"}}]}
    - {call: pick, with: {t: "{{ think.t }}"}}
  outputs: {a: "{{ pick.a }}"}
metric: {type: exact, predicted: a, gold: gold}
"""
TEMPLATES = {
    "think.j2": "{% system %}The same for all.{% endsystem %}{% user %}{{ q }}{% enduser %}",
    "note.j2": "{% user %}note {{ t }}{% enduser %}",
    "pick.j2": "{% system %}The same for all.{% endsystem %}{% user %}{{ q }} {{ t }}{% enduser %}",
}
EXAMPLES = [Example(str(i), {"q": f"question {i}", "gold": ["red", "green", "blue"][i % 3]}) for i in range(3)]
ROLLOUTS = 6


@pytest.fixture
def program(tmp_path: Path) -> Program:
    for name, text in TEMPLATES.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "spec.yaml").write_text(SPEC)
    return Program.build(load(tmp_path / "spec.yaml"))


def trained(program: Program, engine: LocalEngine, folder: Path, **settings: Any) -> list[dict[str, Any]]:
    """The lines of a short training."""
    usual = {"steps": 1, "examples": 3, "rollouts": ROLLOUTS, "learning_rate": 0.01, "lora": {"rank": 2}}
    config = MmGrpo.model_validate(usual | settings)
    train(TrainingJob(program, {"policy": engine}, EXAMPLES, (), config, 0, folder))
    return [json.loads(line) for line in (folder / "rollouts.jsonl").read_text().splitlines()]


def reasons(lines: list[dict[str, Any]]) -> Counter[str | None]:
    return Counter(call["left_out"] for line in lines for member in line["members"] for call in member["calls"])


WAYS: dict[str, tuple[dict[str, Any], set[str]]] = {
    "ragged": ({}, {"frozen"}),
    "truncate": ({"grouping": {"uneven": "truncate"}}, {"frozen", "truncated"}),
    "fill": ({"grouping": {"uneven": "fill"}}, {"frozen"}),
    "select": ({"grouping": {"select": 3}}, {"frozen", "not_selected"}),
    "whole runs": ({"grouping": {"by": "trajectory", "select": 4}}, {"frozen", "not_selected"}),
    "tree": ({"tree": [2, 3], "rollouts": 6}, {"frozen"}),
    "kl": ({"kl": 0.1}, {"frozen"}),
}


@pytest.mark.parametrize("way", WAYS)
def test_every_call_is_kept_and_what_is_said_to_be_trained_is_what_is(
    program: Program, engine: LocalEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    settings, expected = WAYS[way]
    seen: list[TrainingCall] = []
    runs: list[Any] = []

    def watched(engine: Any, optimizer: Any, calls: Any, *rest: Any) -> Any:
        seen.extend(calls)
        return update(engine, optimizer, calls, *rest)

    def kept(file: Path, step: int, rollouts: Any, *rest: Any) -> None:
        runs.extend(rollouts.runs)
        record_keep(file, step, rollouts, *rest)

    record_keep = record.keep
    monkeypatch.setattr("mmc.mmgrpo.policy.update", watched)
    monkeypatch.setattr("mmc.mmgrpo.train.keep", kept)
    lines = trained(program, engine, tmp_path / "t", **settings)
    assert expected <= set(reasons(lines))
    calls = [(member, call) for line in lines for member in line["members"] for call in member["calls"]]
    told = Counter(round(member["advantage"], 6) for member, call in calls if call["left_out"] is None)
    assert told == Counter(round(call.advantage, 6) for call in seen) and told
    made = {(t.example_id, t.rollout, c.module, c.index, c.completion.text) for t in runs for c in t.calls}
    shown = {
        (line["example"], rollout, call["module"], call["index"], call["completion"])
        for line in lines
        for member in line["members"]
        for call in member["calls"]
        for rollout in (call["runs"] or [member["rollout"]])
    }
    assert shown == made, "nothing is lost and nothing invented"
    own = [(m["rollout"], c["index"], c["module"]) for line in lines[:1] for m in line["members"] for c in m["calls"]]
    assert len(own) == len(set(own)) or way == "fill"


def test_prompts_are_stored_once_and_as_they_were(program: Program, engine: LocalEngine, tmp_path: Path) -> None:
    lines = trained(program, engine, tmp_path / "t")
    think = next(line for line in lines if line["module"] == "think" and line["index"] == 0)
    assert len(think["members"]) == ROLLOUTS and len(think["prompts"]) == 1
    asked = [think["messages"][number] for number in think["prompts"][0]]
    assert asked == [["system", "The same for all."], ["user", f"question {think['example']}"]]
    pick = next(line for line in lines if line["module"] == "pick")
    assert sum(role == "system" for role, _ in pick["messages"]) == 1 < len(pick["prompts"])


def test_a_filled_member_is_marked(program: Program, engine: LocalEngine, tmp_path: Path) -> None:
    lines = trained(program, engine, tmp_path / "t", grouping={"uneven": "fill"})
    filled = [(line, m) for line in lines for m in line["members"] if m["filled"]]
    assert filled and all(member["calls"][0]["index"] != line["index"] for line, member in filled)


def test_interrupted_runs_keep_their_end_and_its_reward(program: Program, engine: LocalEngine, tmp_path: Path) -> None:
    lines = trained(program, engine, tmp_path / "t", failure_reward=-0.5)
    ended = [m for line in lines if line["module"] == "think" for m in line["members"] if m["ending"] == "limit"]
    assert ended and all(m["reward"] == -0.5 and m["score"] == 0.0 and "max_calls" in m["error"] for m in ended)


def test_killed_at_any_point_the_file_ends_up_the_same(
    program: Program, engine: LocalEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, cut = tmp_path / "whole/t", tmp_path / "cut/t"
    trained(program, engine, whole, steps=3)
    save = checkpoint.save

    def killed(folder: Path, place: Any, policy: Any) -> None:
        if place.step == 2:
            raise KeyboardInterrupt
        save(folder, place, policy)

    def killed_after(folder: Path, place: Any, policy: Any) -> None:
        save(folder, place, policy)
        raise KeyboardInterrupt

    for kill in (killed, killed_after):
        monkeypatch.setattr("mmc.mmgrpo.train.checkpoint.save", kill)
        with pytest.raises(KeyboardInterrupt):
            trained(program, engine, cut, steps=3)
        with (cut / "rollouts.jsonl").open("a") as file:
            file.write('{"step": 9, "exam')
    monkeypatch.setattr("mmc.mmgrpo.train.checkpoint.save", save)
    trained(program, engine, cut, steps=3)
    assert (cut / "rollouts.jsonl").read_bytes() == (whole / "rollouts.jsonl").read_bytes()
    steps = [
        [json.loads(line)["step"] for line in (f / "metrics.jsonl").read_text().splitlines()] for f in (whole, cut)
    ]
    assert steps == [[1, 2, 3]] * 2
    weights = [(f / "final/shared/adapter_model.safetensors").read_bytes() for f in (whole, cut)]
    assert weights[0] == weights[1]


def test_the_file_stays_bounded(
    program: Program, engine: LocalEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record, "LIMIT", 2000)
    monkeypatch.setattr(record, "TEXT", 4)
    lines = trained(program, engine, tmp_path / "t", steps=2)
    early = [line for line in lines if line["step"] == 1]
    assert all(
        text.startswith("The ") and "not kept" in text for role, text in early[0]["messages"] if role == "system"
    )
    late = [line for line in lines if line["step"] == 2]
    assert late and all(line["messages"] is None for line in late)
    assert all(call["completion"] is None for line in late for m in line["members"] for call in m["calls"])
    assert any(m["advantage"] for line in late for m in line["members"]), "the numbers stay"
