"""Teachers: runs of another program or model whose calls join the student's groups.

A teacher's call is trained as the student's own: the student's prompt for the same inputs, and the teacher's text in the
student's tokens. Where those are the tokens the teacher drew, their log-probabilities are known and importance is
corrected by them; a teacher that gives none counts as certain of what it wrote.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from mmc.data import Example
from mmc.engine import open_engine, open_engines
from mmc.engine.base import Completion, Engine
from mmc.engine.local import LocalEngine
from mmc.errors import ParseError, RunFailure, UsageError
from mmc.program.call import make_request, typed_inputs
from mmc.program.graph import Program
from mmc.program.outputs import Outputs
from mmc.program.run import RunSettings, run_all
from mmc.program.trajectory import Call, Trajectory
from mmc.prompt import Template
from mmc.spec import load, rewrite
from mmc.spec.marks import KeyPath
from mmc.spec.model import RemoteModel, Teacher


@dataclass(frozen=True)
class OpenTeacher:
    """A teacher ready to run."""

    config: Teacher
    name: str
    program: Program
    engines: Mapping[str, Engine]


def open_teachers(
    student: Program, teachers: Sequence[Teacher], modules: Collection[str], engines: Mapping[str, Engine], trust: bool
) -> list[OpenTeacher]:
    """Loads every teacher. ``modules`` are those that the student trains. Raises UsageError when one cannot teach any."""
    return [_open(student, teacher, modules, engines, trust) for teacher in teachers]


def _open(
    student: Program, teacher: Teacher, modules: Collection[str], engines: Mapping[str, Engine], trust: bool
) -> OpenTeacher:
    if teacher.spec is None:
        return _variant(student, teacher, modules, engines)
    loaded = load(student.loaded.resolve(teacher.spec))
    program = replace(Program.build(loaded, trust), metric=student.metric)
    common = [m for m in modules if m in loaded.spec.modules]
    if not common:
        known = ", ".join(loaded.spec.modules)
        raise UsageError(
            f"the teacher {teacher.spec} has none of the trained modules ({', '.join(modules)}); it has: {known}"
        )
    for module in common:
        missing = set(student.spec.modules[module].inputs) - set(loaded.spec.modules[module].inputs)
        if missing:
            raise UsageError(
                f"the teacher {teacher.spec}: its module {module!r} lacks the input {sorted(missing)[0]!r}"
            )
    return OpenTeacher(teacher, teacher.spec, program, open_engines(loaded))


def _variant(
    student: Program, teacher: Teacher, modules: Collection[str], engines: Mapping[str, Engine]
) -> OpenTeacher:
    """The student's own program without adapters, on another model or with other templates."""
    loaded = student.loaded
    program = student.with_adapters(dict.fromkeys(modules, None))
    program = program.with_templates({m: Template.load(loaded.resolve(path)) for m, path in teacher.templates.items()})
    if teacher.model is None:
        return OpenTeacher(teacher, ", ".join(teacher.templates.values()), program, engines)
    changes: dict[KeyPath, object] = {("modules", m, "model"): teacher.model for m in modules}
    if isinstance(loaded.spec.models[teacher.model], RemoteModel):
        # It writes freely; what the student could not have written is dropped.
        changes |= {("modules", m, "constrain"): False for m in modules if loaded.spec.modules[m].constrain}
    changed = loaded.reparsed(rewrite(loaded.text, changes))
    program = replace(program, loaded=changed, readers={m: Outputs(changed, m) for m in changed.spec.modules})
    other = engines.get(teacher.model) or open_engine(loaded, teacher.model)
    return OpenTeacher(teacher, teacher.model, program, {**engines, teacher.model: other})


def teach(
    teachers: Sequence[OpenTeacher],
    student: Program,
    engine: LocalEngine,
    modules: Collection[str],
    examples: Sequence[Example],
    place: tuple[str, int, int],
    on_done: Callable[[Trajectory], None] | None = None,
) -> list[Trajectory]:
    """Finished runs of the teachers, as runs of the student with rollout numbers below 0. ``place``: (stage, step, seed);
    ``on_done`` hears of every run.

    Raises UsageError when a teacher's outputs cannot be scored at all.
    """
    found: list[Trajectory] = []
    stage, step, seed = place
    for number, teacher in enumerate(teachers):
        settings = RunSettings(f"{stage}-teacher-{number}", step, seed, teacher.config.temperature)
        runs = run_all(teacher.program, teacher.engines, examples, settings, teacher.config.rollouts, on_done)
        done = [run for run in runs if run.ending == "done"]
        if runs and not done and all("the metric failed" in (run.error or "") for run in runs):
            raise UsageError(f"the teacher {teacher.name}: {runs[0].error}")
        found += [_as_students(run, student, engine, modules, -1 - len(found) - i) for i, run in enumerate(done)]
    return found


def _as_students(
    run: Trajectory, student: Program, engine: LocalEngine, modules: Collection[str], rollout: int
) -> Trajectory:
    calls = (_as_students_call(call, student, engine) if call.module in modules else call for call in run.calls)
    kept = tuple(call for call in calls if call is not None)
    return replace(run, rollout=rollout, calls=kept)


def _as_students_call(call: Call, student: Program, engine: LocalEngine) -> Call | None:
    """The call in the student's prompt and tokens; None when the student could not have made it."""
    module = student.spec.modules[call.module]
    try:
        inputs = typed_inputs(module, call.module, {name: call.inputs[name] for name in module.inputs})
        request, options = make_request(student, call.module, inputs, (), temperature=1.0, seed=0)
        outputs = student.readers[call.module].parse(call.completion.text, options)
        own = engine.encode(request, call.completion.text, call.completion.finish == "stop")
    except (RunFailure, ParseError):
        return None
    sampled = call.completion
    same = sampled.ids_T == own.ids_T and len(sampled.logprobs_T) == len(own.ids_T)
    completion: Completion = replace(own, logprobs_T=sampled.logprobs_T) if same else own
    return replace(call, inputs=inputs, messages=request.messages, completion=completion, outputs=outputs)
