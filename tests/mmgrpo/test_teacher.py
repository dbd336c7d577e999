"""Teachers: what they say in their own prompts is learned in the student's."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmc.data import Example
from mmc.engine.local import LocalEngine
from mmc.errors import UsageError
from mmc.mmgrpo.distill import DistillJob, distill
from mmc.mmgrpo.policy import make_policy
from mmc.mmgrpo.rollout import Sampler
from mmc.mmgrpo.teacher import open_teachers, teach
from mmc.mmgrpo.train import TrainingJob, make_sampler
from mmc.mmgrpo.update import module_terms, training_calls
from mmc.program.evaluate import evaluate
from mmc.program.graph import Program
from mmc.program.run import RunSettings, run_all
from mmc.spec import load
from mmc.spec.model import Distill, MmGrpo, Teacher

SPEC = """\
mmc: 1
name: taught
models: {policy: {type: local, source: "path:nowhere"}}
modules:
  pick: {model: policy, template: pick.j2, inputs: {q: str}, outputs: {a: {enum: [red, green, blue]}}, constrain: true}
program: {inputs: {q: str}, steps: [{call: pick}], outputs: {a: "{{ pick.a }}"}}
metric: {type: exact, predicted: a, gold: gold}
"""
SHOWN = "{% user %}sky{% enduser %}{% assistant %}blue{% endassistant %}"
TEMPLATE = "{% slot demos %}{% endslot %}{% user %}{{ q }}{% enduser %}"
EXAMPLES = [Example(str(i), {"q": f"question {i}", "gold": "green"}) for i in range(4)]
TEACHER = Teacher(templates={"pick": "shown.j2"}, rollouts=3)


@pytest.fixture
def program(tmp_path: Path) -> Program:
    (tmp_path / "pick.j2").write_text(TEMPLATE)
    (tmp_path / "shown.j2").write_text(TEMPLATE.replace("{% slot demos %}", "{% slot demos %}" + SHOWN))
    (tmp_path / "spec.yaml").write_text(SPEC)
    return Program.build(load(tmp_path / "spec.yaml"))


def sampler(program: Program, engine: LocalEngine, folder: Path, config: MmGrpo) -> tuple[Sampler, dict[str, str]]:
    job = TrainingJob(program, {"policy": engine}, EXAMPLES, EXAMPLES, config, 0, folder)
    policy = make_policy(program, job.engines, config, "t", 0, {})
    return make_sampler(job, program.with_adapters(policy.names), policy), dict(policy.names)


def test_a_teachers_demonstrations_are_not_in_the_prompt_that_is_trained(program: Program, engine: LocalEngine) -> None:
    engines = {"policy": engine}
    teachers = open_teachers(program, [TEACHER], ["pick"], engines, False)
    runs = teach(teachers, program, engine, ["pick"], EXAMPLES, ("weights", 0, 0))
    assert len(runs) == 12 and all(run.rollout < 0 for run in runs) and len({run.rollout for run in runs}) == 12
    for run in runs:
        (call,) = run.calls
        text = engine.tokenizer.decode(call.completion.prompt_ids_T)
        assert call.inputs["q"] in text and "sky" not in text
        assert call.outputs == {"a": call.completion.text} and not call.completion.exact


def test_teachers_runs_join_the_groups_with_their_own_log_probabilities(
    program: Program, engine: LocalEngine, tmp_path: Path
) -> None:
    config = MmGrpo(examples=4, rollouts=4, teachers=[TEACHER])
    source, names = sampler(program, engine, tmp_path, config)
    rollouts = source.sample(0, 0)
    assert [len(group.members) for group in rollouts.groups] == [7] * 4
    calls = training_calls(rollouts.groups, config, module_terms(program.spec, names))
    others = [call for call in calls if not call.own]
    assert others and all(not call.exact and call.old_F is None for call in others)
    assert all(value < 0 for call in others for value in call.sampler_F), "drawn in the teacher's prompt, and known"


def test_distilling_a_teacher_needs_no_runs_of_the_student(
    program: Program, engine: LocalEngine, tmp_path: Path
) -> None:
    config = Distill(rollouts=0, teachers=[replace_rollouts(8)], examples=4, batch=4, learning_rate=0.02, epochs=8)
    result = distill(DistillJob(program, {"policy": engine}, EXAMPLES, config, 0, tmp_path / "d"))
    assert result.runs == 32 and 0 < result.passed < 32
    engine.adapters.load("x", result.adapters["pick"])
    settings = RunSettings("eval", 0, 0, 0.0)
    taught = evaluate(program.with_adapters({"pick": "x"}), {"policy": engine}, EXAMPLES, settings)
    assert taught.interval.mean == 1.0, "every passing run says green"


def test_single_calls_are_distilled_by_their_own_reward(program: Program, engine: LocalEngine, tmp_path: Path) -> None:
    text = program.loaded.text + (
        "shaping: {pick: [{name: warm, weight: 2, metric: {type: exact, predicted: a, gold: warm}}]}\n"
    )
    shaped = Program.build(program.loaded.reparsed(text))
    examples = [Example(e.id, {**e.row, "warm": "red"}) for e in EXAMPLES]
    config = Distill(
        rollouts=8, examples=4, batch=4, learning_rate=0.02, epochs=8, by="call", threshold=2.0, per_example=1
    )
    result = distill(DistillJob(shaped, {"policy": engine}, examples, config, 0, tmp_path / "d"))
    assert result.runs == 32 and 0 < result.passed < 32
    engine.adapters.load("x", result.adapters["pick"])
    taught = run_all(program.with_adapters({"pick": "x"}), {"policy": engine}, EXAMPLES, RunSettings("eval", 0, 0, 0.0))
    assert {run.outputs["a"] for run in taught if run.outputs} == {"red"}, "not what the run's own reward asks for"


def replace_rollouts(count: int) -> Teacher:
    return TEACHER.model_copy(update={"rollouts": count})


def test_a_template_of_a_teacher_is_checked_with_the_spec(program: Program) -> None:
    text = program.loaded.text + (
        "compile: {distill: {teachers: [{templates: {pick: shown.j2, pik: x.j2}}, {templates: {pick: gone.j2}}, "
        "{model: polcy}]}}\n"
    )
    from mmc.program.check import check

    found = "\n".join(problem.message for problem in check(program.loaded.reparsed(text)))
    assert "there is no module 'pik'" in found and "gone.j2: there is no such template" in found
    assert "there is no model 'polcy'" in found


def test_a_teacher_that_trains_none_of_the_modules_is_refused(
    program: Program, engine: LocalEngine, tmp_path: Path
) -> None:
    other = SPEC.replace("pick:", "choose:").replace("call: pick", "call: choose").replace("pick.a", "choose.a")
    (tmp_path / "other.yaml").write_text(other)
    with pytest.raises(UsageError, match="has none of the trained modules"):
        open_teachers(program, [Teacher(spec="other.yaml")], ["pick"], {"policy": engine}, False)
