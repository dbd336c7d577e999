"""From a checked spec to a build folder."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmc.build import BuildJob, StageScore, Work, write_build
from mmc.cluster import Cluster
from mmc.compile.live import KeptProgress, begin_run, end_run, tell_stages
from mmc.compile.progress import Progress, Silent
from mmc.compile.record import digest, finished_stage, locked, open_stage, read_json, write_json
from mmc.compile.stages import STAGES, load_first
from mmc.compile.state import Context, Scored, State, known_score, score
from mmc.compile.track import open_tracking
from mmc.compile.work import WorkLedger
from mmc.data import SPLITS, Example, load_split
from mmc.engine import open_engines
from mmc.engine.base import distinct
from mmc.errors import InvalidError
from mmc.metric import paired
from mmc.program.check import untunable
from mmc.program.graph import Program
from mmc.prompt import Template
from mmc.spec import load
from mmc.spec.load import LoadedSpec
from mmc.spec.model import Teacher, searched_models
from mmc.track import Wanted


@dataclass(frozen=True)
class CompileJob:
    """What to compile and where: builds go below ``out``, what is needed to resume below ``runs``."""

    loaded: LoadedSpec
    out: Path = Path("build")
    runs: Path = Path(".mmc/runs")
    trust: bool = False
    progress: Progress = field(default_factory=Silent)
    track: Sequence[Wanted] = ()
    """Where else the curves go."""
    cluster: Cluster | None = None
    """Where runs are made and weights trained; in this process without."""


@dataclass(frozen=True)
class CompileResult:
    """The build folder and the held-out scores of every stage, the start first."""

    build: Path
    stages: tuple[StageScore, ...]


def compile_spec(job: CompileJob) -> CompileResult:
    """Compiles a spec. Raises InvalidError and EnvironmentProblem before anything is spent where that is possible.

    When a stage fails after others have made the program better, their build is written before the error is raised.
    """
    folder = run_folder(job)
    with locked(folder):
        done = run_stages(job, folder)
        build = _build(job, done) if done.failure is None or any(s.kept for s in done.stages[1:]) else None
        end_run(folder, build=None if build is None else str(build))
    if done.failure is not None:
        if build is not None:
            job.progress.say(f"what was reached before the failure is kept: {build}")
        raise done.failure
    assert build is not None
    return CompileResult(build, tuple(done.stages))


@dataclass(frozen=True)
class Done:
    """A strategy that was run, as far as it went."""

    context: Context
    state: State
    stages: list[StageScore]
    failure: Exception | None
    """What ended a stage; those before it are whole."""
    folders: Mapping[str, Path]
    """Stage -> where its result and its curves are."""
    ledger: Sequence[Work]


def run_stages(job: CompileJob, folder: Path, siblings: Path | None = None) -> Done:
    """Runs or resumes the stages of a spec's strategy in ``folder``.

    What compiles below ``siblings`` have scored or finished with the same inputs is taken from there.
    """
    loaded = job.loaded
    if loaded.spec.data is None or loaded.spec.metric is None:
        raise InvalidError([loaded.diagnostic((), "compiling needs `data` and `metric`", "add both to the spec")])
    if problems := untunable(loaded):  # before the stages in front of these are paid for
        raise InvalidError(problems)
    program = Program.build(loaded, job.trust)
    data: dict[str, Sequence[Example]] = {split: load_split(loaded, split) for split in SPLITS}
    sizes = {split: len(rows) for split, rows in data.items()}
    begin_run(folder, program, job.out, sizes)
    progress = KeptProgress(folder, job.progress)
    progress.say(f"run folder: {folder} (an interrupted compile goes on from there)")
    progress.begin("loading the model", 1)
    asked = searched_models(loaded.spec) if "prompts" in loaded.spec.compile.strategy else []
    cluster, seed = job.cluster, loaded.spec.compile.seed
    opened = cluster.open_engines(loaded, asked, job.trust, progress.say) if cluster is not None else None
    engines = opened or open_engines(loaded, asked)
    job.progress.watch(distinct(engines))
    scores = (siblings or folder) / "scores"
    tracking = open_tracking(job.track, folder, program, sizes, progress.say)
    context = Context(engines, data, seed, folder, scores, progress, job.trust, siblings, tracking)
    progress.advance(1)
    try:
        done = _run_stages(context, load_first(context, program))
        failed = done.failure is not None
        end_run(folder, state="failed" if failed else "done", error=str(done.failure) if failed else None)
        return done
    finally:
        tracking.close()
        for engine in distinct(engines):
            engine.close()


def run_folder(job: CompileJob) -> Path:
    """The same for the same spec file and output folder, so that a second call finds what the first one left."""
    place = digest([str(job.loaded.path), str(job.out.resolve())])[:8]
    return (job.runs / f"{job.loaded.spec.name}-{place}").resolve()


def _run_stages(context: Context, start: State) -> Done:
    compile_ = start.program.spec.compile
    ledger, stages, folders = WorkLedger(), list[StageScore](), dict[str, Path]()
    state = start

    def after_stage(label: str, note: str, kept: bool = True, seconds: float = 0.0) -> None:
        found = score(context, state, "test", label)
        ledger.scored(label, "test", found)
        stages.append(_stage_score(context, found, label, note, (kept, seconds)))
        tell_stages(context.folder, stages)
        context.tracking.scored(stages, ledger.entries)

    after_stage("start", "the spec as it is")
    seen: Counter[str] = Counter()
    for number, name in enumerate(compile_.strategy, 1):
        seen[name] += 1
        label = name if seen[name] == 1 else f"{name}.{seen[name]}"
        folder = context.folder / f"{number}-{name}"
        context.progress.stage(label, number, len(compile_.strategy))
        began = time.perf_counter()
        try:
            folder = _open(context, state, name, folder)
            context.tracking.begin(label, folder)
            after, note = STAGES[name](context, state, folder)
            context.tracking.look(folder)  # what was there already when the stage was opened
            folders[label] = folder
            ledger.stage(label, name, folder)
            kept, verdict = _gate(context, (state, after), label, folder, ledger) if compile_.gate else (True, "")
        except Exception as error:  # whatever it is, the stages before it are not lost
            context.progress.say(f"{label} failed")
            return Done(context, state, stages, error, folders, ledger.entries)
        state = after if kept else state
        text = "; ".join(part for part in (note, verdict) if part)
        seconds = _seconds(folder, time.perf_counter() - began)
        after_stage(label, text, kept, seconds)
    return Done(context, state, stages, None, folders, ledger.entries)


def stage_inputs(context: Context, state: State, name: str) -> dict[str, Any]:
    """Everything that a stage's outcome depends on."""
    spec = state.program.spec
    config = getattr(spec.compile, name)
    shaping = {module: [part.model_dump(mode="json") for part in parts] for module, parts in spec.shaping.items()}
    return {
        "state": state.fingerprint(),
        **({"shaping": shaping} if name == "weights" or getattr(config, "by", "") == "call" else {}),
        "data": context.data_fingerprint("train", "dev"),
        "seed": context.seed,
        "compile": {name: config.model_dump(mode="json")},
        "teachers": [_teacher(context, state, teacher) for teacher in getattr(config, "teachers", [])],
    }


def _open(context: Context, state: State, name: str, folder: Path) -> Path:
    """The stage's folder, made ready, or a sibling's that is done; says which inputs changed since it was last used."""
    inputs = stage_inputs(context, state, name)
    if context.siblings is not None and not (folder / "result.json").exists():
        done = finished_stage(context.siblings, name, inputs)
        if done is not None:
            return done
    changed = open_stage(folder, inputs)
    if changed:
        listed = ", ".join(changed[:6]) + (", ..." if len(changed) > 6 else "")
        context.progress.say(f"{name}: starting over, because this changed: {listed}")
    return folder


def _teacher(context: Context, state: State, teacher: Teacher) -> dict[str, Any]:
    """What a teacher's behaviour depends on, beside this spec."""
    loaded = state.program.loaded
    if teacher.spec is None:
        return {name: Template.load(loaded.resolve(path)).sha256 for name, path in teacher.templates.items()}
    other = load(loaded.resolve(teacher.spec))
    folders = {module: other.resolve(folder) for module, folder in other.spec.adapters.items()}
    return State(Program.build(other, context.trust), folders).fingerprint()


def _gate(
    context: Context, states: tuple[State, State], label: str, folder: Path, ledger: WorkLedger
) -> tuple[bool, str]:
    """Whether the stage stays: not when dev got worse."""
    before, after = states
    if after.fingerprint() == before.fingerprint():
        return True, ""
    met = _met(context, folder)
    if met is None:
        scored = [score(context, s, "dev", f"{when} {label}") for s, when in ((before, "before"), (after, "after"))]
        for found, when in zip(scored, ("before", "after"), strict=True):
            ledger.scored(label, f"dev, {when} it", found)
        met = list(scored[0].scores), list(scored[1].scores)
    difference = paired(*met)
    change = f"dev {difference.mean:+.3f} [{difference.low:+.3f}, {difference.high:+.3f}]"
    if difference.mean < 0:
        context.progress.say(f"{label}: rolled back, {change}")
        return False, f"rolled back: {change}"
    return True, change


def known_gate(context: Context, states: tuple[State, State], folder: Path) -> bool | None:
    """Whether a finished stage stays, from scores that are there; None when they are not."""
    before, after = states
    if after.fingerprint() == before.fingerprint():
        return True
    met = _met(context, folder)
    if met is None:
        old, new = known_score(context, before, "dev"), known_score(context, after, "dev")
        if old is None or new is None:
            return None
        met = list(old.scores), list(new.scores)
    return paired(*met).mean >= 0


def _met(context: Context, folder: Path) -> tuple[list[float], list[float]] | None:
    """Scores before and after a search that has itself met every dev example; None when it has not."""
    found = (read_json(folder / "result.json") or {}).get("dev")
    if found is None or sorted(found["examples"]) != sorted(example.id for example in context.data["dev"]):
        return None
    return found["before"], found["after"]


def _stage_score(context: Context, found: Scored, label: str, note: str, ended: tuple[bool, float]) -> StageScore:
    """``ended``: whether the stage was kept, and its seconds."""
    kept, seconds = ended
    interval = found.interval
    context.progress.say(f"{label}: test {interval}" + ("" if kept else " (rolled back)"))
    return StageScore(
        stage=label,
        split="test",
        score=interval.mean,
        low=interval.low,
        high=interval.high,
        n=interval.n,
        scores=found.scores,
        kept=kept,
        note=note,
        seconds=round(seconds + found.seconds, 1),
        tokens=found.tokens,
        failures=dict(found.failures),
        traces=found.traces,
        parts=found.parts,
    )


def _seconds(folder: Path, spent: float) -> float:
    """Seconds a stage took when it was really run, not when its result was read again."""
    known = read_json(folder / "seconds.json")
    if known is None:
        write_json(folder / "seconds.json", known := round(spent, 1))
    return float(known)


def _build(job: CompileJob, done: Done) -> Path:
    return write_build(
        BuildJob(
            program=done.state.program,
            adapters=done.state.adapters,
            data=done.context.data,
            stages=tuple(done.stages),
            out=job.out,
            folders=done.folders,
            ledger=done.ledger,
        )
    )
