"""The loop of mmGRPO (the paper's algorithm 1): roll out, group, update; checkpoint after every step."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

from mmc.data import Example
from mmc.engine.base import Engine, seed_of
from mmc.mmgrpo import checkpoint
from mmc.mmgrpo.ahead import Ahead, InTurn
from mmc.mmgrpo.audit import audit
from mmc.mmgrpo.checkpoint import Place
from mmc.mmgrpo.group import Rewards, form_groups, shaping_of
from mmc.mmgrpo.policy import Learner, bounded, learning_rate, make_learner
from mmc.mmgrpo.record import keep
from mmc.mmgrpo.report import StepFacts, StepReport, alarm, step_report
from mmc.mmgrpo.rollout import Rollouts, Sampler
from mmc.mmgrpo.teacher import open_teachers, teach
from mmc.mmgrpo.update import module_terms, training_calls
from mmc.program.evaluate import evaluate
from mmc.program.graph import Program
from mmc.program.judge import score_again
from mmc.program.run import RunSettings
from mmc.program.usage import added, usage_by_module
from mmc.spec.model import MmGrpo


@dataclass(frozen=True)
class TrainingJob:
    """What to train, on what, and where to keep checkpoints, ``metrics.jsonl`` and ``rollouts.jsonl``; resumes from there."""

    program: Program
    engines: Mapping[str, Engine]
    train: Sequence[Example]
    dev: Sequence[Example]
    config: MmGrpo
    seed: int
    folder: Path
    initial: Mapping[str, Path] = field(default_factory=dict)
    """Module -> adapter folder to go on from; a fresh adapter where there is none."""
    trust: bool = False
    """Whether teachers may run Python of their own."""
    on_step: Callable[[StepReport], None] = lambda report: None
    say: Callable[[str], None] = lambda line: None


@dataclass(frozen=True)
class TrainingResult:
    """The trained adapters by module (folders in PEFT format), the program that uses them, and the steps that were made."""

    adapters: Mapping[str, Path]
    program: Program
    steps: int


def train(job: TrainingJob) -> TrainingResult:
    """Runs (or resumes) the training. Raises UsageError when no module can be trained."""
    policy = make_learner(job.program, job.engines, job.config, job.folder.name, job.seed, job.initial)
    place = checkpoint.resume(job.folder, policy)
    config = bounded(job.config, policy, job.folder)
    job = replace(job, config=config)
    program = job.program.with_adapters(policy.names)
    sampler = make_sampler(job, program, policy)
    source = Ahead(sampler, policy, config, job.folder / "sampling") if config.staleness else InTurn(sampler)
    unreadable = _unreadable_so_far(job.folder / "metrics.jsonl")
    with closing(source), (job.folder / "metrics.jsonl").open("a", encoding="utf-8") as metrics:
        for step in range(place.step, config.steps):
            if place.stopped:
                break
            report, position = train_step(job, source, policy, step, place.position)
            place = replace(place, step=step + 1, position=position)
            if config.evaluate_every and ((step + 1) % config.evaluate_every == 0 or step + 1 == config.steps):
                source.settle()
                report, place = _evaluate(job, program, policy, report, place)
            # Before the checkpoint: what a kill leaves of a step that has none is dropped at the resume.
            metrics.write(json.dumps(asdict(report)) + "\n")
            metrics.flush()
            checkpoint.save(job.folder, place, policy)
            unreadable.append(report.unreadable)
            if warning := alarm(unreadable):
                job.say(warning)
            job.on_step(report)
    if place.best is not None:
        policy.load(job.folder / "best")
    return TrainingResult(policy.save(job.folder / "final"), program, place.step)


def train_step(job: TrainingJob, source: InTurn, policy: Learner, step: int, position: int) -> tuple[StepReport, int]:
    """One step: sample runs, group their calls, update. Gives its report and the position in the data after it."""
    config, start = job.config, time.perf_counter()
    rate = learning_rate(config, step, config.steps)
    policy.set_rate(rate, config.learning_rate)
    rollouts = source.sample(step, position)
    if step == 0:
        _audit(job, rollouts)
    sampled = time.perf_counter()
    source.go_on(step)
    keep(job.folder / "rollouts.jsonl", step + 1, rollouts, config, (list(policy.names), _rewards(job)))
    calls = training_calls(rollouts.groups, config, module_terms(job.program.spec, policy.names))
    result = policy.update(calls, config, seed_of(job.seed, "update", step))
    facts = StepFacts(
        step=step,
        steps=config.steps,
        learning_rate=rate,
        resampled=rollouts.resampled,
        tokens_plain=sum(len(c.sampled.needed) for c in calls),
        epochs=config.inner_epochs,
        staleness=source.age(step),
        seconds_rollout=sampled - start,
        seconds_update=time.perf_counter() - sampled,
        usage=usage_by_module(rollouts.runs),
    )
    own = [run for run in rollouts.runs if run.rollout >= 0]
    return step_report(facts, own, rollouts.groups, result), rollouts.position


def make_sampler(job: TrainingJob, program: Program, policy: Learner) -> Sampler:
    """Runs ``program`` and its teachers, and groups what they did as the spec says."""
    config, modules = job.config, list(policy.names)
    rewards = _rewards(job)
    teachers = open_teachers(job.program, config.teachers, modules, job.engines, job.trust)
    return Sampler(
        program=program,
        engines=job.engines,
        examples=job.train,
        config=config,
        seed=job.seed,
        group=lambda runs: form_groups(runs, modules, rewards, config.grouping, job.seed),
        teach=lambda examples, step: teach(
            teachers, program, policy.engine, modules, examples, ("weights", step, job.seed)
        ),
    )


def _rewards(job: TrainingJob) -> Rewards:
    return Rewards(job.config.failure_reward, job.config.format_reward, shaping_of(job.program, job.train))


def _audit(job: TrainingJob, rollouts: Rollouts) -> None:
    """Says what the first rollouts tell about the reward; kept in ``audit.json``."""
    own = [run for run in rollouts.runs if run.rollout >= 0]
    score = partial(score_again, job.program, job.engines) if job.program.metric is not None else None
    found = audit(own, rollouts.groups, job.train, score)
    text = json.dumps({**asdict(found), "findings": found.findings()}, indent=2)
    (job.folder / "audit.json").write_text(text + "\n", encoding="utf-8")
    for line in found.findings():
        job.say(line)


def _evaluate(
    job: TrainingJob, program: Program, policy: Learner, report: StepReport, place: Place
) -> tuple[StepReport, Place]:
    """Scores dev greedily and keeps the adapters when they are the best so far."""
    settings = RunSettings(stage="weights-dev", step=0, seed=job.seed, temperature=0.0)
    found = evaluate(program, job.engines, job.dev, settings)
    score = found.interval.mean
    if place.best is None or score > place.best:
        place = replace(place, best=score, best_step=report.step, worse=0)
        policy.save(job.folder / "best")
    else:
        place = replace(place, worse=place.worse + 1)
        if job.config.patience and place.worse >= job.config.patience:
            place = replace(place, stopped=True)
            job.say(f"stopped after step {report.step}: dev was best after step {place.best_step} ({place.best:.3f})")
    usage = added([report.usage, usage_by_module(found.trajectories)])
    return replace(report, dev=score, usage=usage), place


def _unreadable_so_far(metrics: Path) -> list[float]:
    """The curve of unreadable completions, from before a resume."""
    if not metrics.exists():
        return []
    return [json.loads(line)["unreadable"] for line in metrics.read_text(encoding="utf-8").splitlines()]
