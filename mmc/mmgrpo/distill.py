"""Distillation: supervised training on passing runs or calls, the program's own or those of teachers.

The maximum-likelihood loss over the same packed forests as mmGRPO: the mean over a step's lessons (runs, or an example's best
calls) of the mean of -log p over each one's tokens, those of a module times its weight. Tokens that a constraint forced carry
no gradient and do not count.
"""

from __future__ import annotations

import itertools
import json
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from math import inf
from pathlib import Path

from mmc.data import Example
from mmc.engine.base import Engine, seed_of
from mmc.errors import UsageError
from mmc.mmgrpo import checkpoint
from mmc.mmgrpo.group import Group, Rewards, form_groups, shaping_of
from mmc.mmgrpo.imitate import Sentence
from mmc.mmgrpo.policy import Learner, bounded, learning_rate, make_learner
from mmc.mmgrpo.rollout import take
from mmc.mmgrpo.teacher import open_teachers, teach
from mmc.mmgrpo.update import ModuleTerms, module_terms
from mmc.program.graph import Program
from mmc.program.run import RunSettings, run_all
from mmc.program.trajectory import Call, Trajectory
from mmc.program.usage import ByModule, usage_by_module
from mmc.spec.model import Distill
from mmc.trie.logprobs import Sampled


@dataclass(frozen=True)
class DistillJob:
    """What to train, on what, and where to keep checkpoints and ``metrics.jsonl``; resumes from there."""

    program: Program
    engines: Mapping[str, Engine]
    train: Sequence[Example]
    config: Distill
    seed: int
    folder: Path
    initial: Mapping[str, Path] = field(default_factory=dict)
    """Module -> adapter folder to go on from; a fresh adapter where there is none."""
    trust: bool = False
    on_run: Callable[[int, int], None] = lambda done, runs: None
    """How many of the runs to learn from are made, of how many; told before the first, too."""
    on_step: Callable[[DistillReport], None] = lambda report: None
    on_lessons: Callable[[int], None] = lambda steps: None
    """The runs are made; how many optimizer steps follow."""


@dataclass(frozen=True)
class DistillReport:
    """One finished optimizer step."""

    step: int
    steps: int
    loss: float
    """Mean over runs of the mean of -log p over their tokens."""
    tokens: int
    grad_norm: float
    learning_rate: float
    seconds: float


@dataclass(frozen=True)
class DistillResult:
    """The trained adapters by module; how many runs (or calls) passed, of how many, on how many of the examples."""

    adapters: Mapping[str, Path]
    passed: int
    runs: int
    covered: int
    examples: int
    usage: ByModule
    """Of the runs."""
    seconds_runs: float


@dataclass(frozen=True)
class Lesson:
    """Calls to learn together, of a passing run or an example's best: each with its module's terms."""

    calls: tuple[tuple[ModuleTerms, Sampled], ...]

    @property
    def tokens(self) -> int:
        return sum(len(sampled.free_T) for _, sampled in self.calls)


def distill(job: DistillJob) -> DistillResult:
    """Runs (or resumes) the stage. Raises UsageError when no run passes or no module can be trained."""
    config = job.config
    policy = make_learner(job.program, job.engines, config, job.folder.name, job.seed, job.initial)
    began = time.perf_counter()
    runs, examples = _runs(job, policy)
    seconds = time.perf_counter() - began
    terms = module_terms(job.program.spec, policy.names)
    chosen = _chosen(job, runs, list(terms))
    lessons = [lesson for _, calls in chosen.lessons if (lesson := _lesson(calls, terms)).tokens]
    if chosen.lessons and not lessons:
        raise UsageError(
            f"distill: {chosen.passed} {config.by}s pass, but in none of them is there a call of a trained module to learn "
            "from: one whose text can be read as its outputs and that was not forced by a constraint"
        )
    if not lessons:
        raise UsageError(
            f"distill: no {config.by} reaches the threshold of {config.threshold:g} on {examples} examples "
            f"(best: {chosen.best:.3f}); lower `threshold`, add `teachers`, or take more `examples` or `rollouts`"
        )
    batches = -(-len(lessons) // config.batch)
    steps = config.epochs * batches
    place = checkpoint.resume(job.folder, policy)
    config = bounded(config, policy, job.folder)
    job.on_lessons(steps)
    with (job.folder / "metrics.jsonl").open("a", encoding="utf-8") as metrics:
        for step in range(place.step, steps):
            rate = learning_rate(config, step, steps)
            policy.set_rate(rate, config.learning_rate)
            report = _step(policy, _batch(lessons, step, batches, job), config, (job.seed, step, steps, rate))
            # Before the checkpoint: what a kill leaves of a step that has none is dropped at the resume.
            metrics.write(json.dumps(asdict(report)) + "\n")
            metrics.flush()
            checkpoint.save(job.folder, replace(place, step=step + 1), policy)
            job.on_step(report)
    covered = len({example for example, _ in chosen.lessons})
    adapters, usage = policy.save(job.folder / "final"), usage_by_module(runs)
    return DistillResult(adapters, chosen.passed, chosen.candidates, covered, examples, usage, seconds)


def _runs(job: DistillJob, policy: Learner) -> tuple[list[Trajectory], int]:
    """Runs of the program as it was before the stage, and of the teachers; on how many examples."""
    config, modules = job.config, list(policy.names)
    examples, _ = take(job.train, config.examples, 0, job.seed)
    total = len(examples) * (config.rollouts + sum(teacher.rollouts for teacher in config.teachers))
    made = itertools.count(1)

    def on_done(run: Trajectory) -> None:
        job.on_run(next(made), total)

    job.on_run(0, total)
    runs: list[Trajectory] = []
    if config.rollouts:
        settings = RunSettings("distill", 0, job.seed, config.temperature)
        runs += run_all(job.program, job.engines, examples, settings, config.rollouts, on_done)
    teachers = open_teachers(job.program, config.teachers, modules, job.engines, job.trust)
    runs += teach(teachers, job.program, policy.engine, modules, examples, ("distill", 0, job.seed), on_done)
    return runs, len(examples)


@dataclass(frozen=True)
class Chosen:
    """What is learned from: for each lesson an example's id and calls made for it. ``passed`` of the ``candidates``, which
    are runs or calls, reach the threshold; the ``best`` has that reward.
    """

    lessons: Sequence[tuple[str, Sequence[Call]]]
    passed: int
    candidates: int
    best: float


def _chosen(job: DistillJob, runs: Sequence[Trajectory], modules: Sequence[str]) -> Chosen:
    config = job.config
    if config.by == "call":
        finished = [run for run in runs if run.ending == "done"]
        groups = form_groups(finished, modules, Rewards(shaping=shaping_of(job.program, job.train)))
        found = [reward for group in groups for reward in group.rewards_C]
        return _counted(passing_calls(groups, config.threshold, config.per_example), found, config)
    lessons = [(run.example_id, run.calls) for run in passing(runs, config.threshold, config.per_example)]
    return _counted(lessons, [run.reward if run.ending == "done" else -inf for run in runs], config)


def _counted(lessons: Sequence[tuple[str, Sequence[Call]]], rewards: Sequence[float], config: Distill) -> Chosen:
    passed = sum(reward >= config.threshold for reward in rewards)
    return Chosen(lessons, passed, len(rewards), max([0.0, *rewards]))


def passing(runs: Sequence[Trajectory], threshold: float, per_example: int) -> list[Trajectory]:
    """Finished runs that reach ``threshold``: for each example the best, at most ``per_example``, all different."""
    found: dict[str, list[Trajectory]] = {}
    for run in sorted(runs, key=lambda run: -run.reward):
        if run.ending != "done" or run.reward < threshold:
            continue
        mine = found.setdefault(run.example_id, [])
        if len(mine) < per_example and _tokens(run.calls) not in [_tokens(other.calls) for other in mine]:
            mine.append(run)
    return [run for example in dict.fromkeys(r.example_id for r in runs) for run in found.get(example, [])]


def passing_calls(groups: Sequence[Group], threshold: float, per_example: int) -> list[tuple[str, list[Call]]]:
    """Calls whose own reward reaches ``threshold``: of each group the best, at most ``per_example``, all different.

    An example's first lesson is made of the best call of each of its groups, its second of the second best, and so on.
    """
    lessons: dict[tuple[str, int], list[Call]] = {}
    for group in groups:
        best: list[Call] = []
        for member in sorted(group.members, key=lambda member: -member.reward):
            if member.reward >= threshold and _tokens(member.calls) not in [_tokens([other]) for other in best]:
                best += member.calls
        for number, call in enumerate(best[:per_example]):
            lessons.setdefault((group.example_id, number), []).append(call)
    return [(example, calls) for (example, _), calls in lessons.items()]


def _tokens(calls: Sequence[Call]) -> list[tuple[int, ...]]:
    return [call.completion.ids_T for call in calls]


def _lesson(calls: Sequence[Call], terms: Mapping[str, ModuleTerms]) -> Lesson:
    kept = []
    for call in calls:
        done = call.completion
        # Likelihood is learned at temperature 1, however the completion was drawn.
        sampled = Sampled(done.prompt_ids_T, done.ids_T, done.allowed_T)
        if call.module in terms and sampled.free_T:
            kept.append((terms[call.module], sampled))
    return Lesson(tuple(kept))


def _batch(lessons: Sequence[Lesson], step: int, batches: int, job: DistillJob) -> list[Lesson]:
    """The lessons of one step; every epoch shuffles anew."""
    epoch, number = divmod(step, batches)
    shuffled = list(lessons)
    random.Random(seed_of(job.seed, "distill-epoch", epoch)).shuffle(shuffled)
    return shuffled[number * job.config.batch : (number + 1) * job.config.batch]


def _step(
    policy: Learner, batch: Sequence[Lesson], config: Distill, place: tuple[int, int, int, float]
) -> DistillReport:
    """One optimizer step. ``place``: (seed, step, steps, learning rate)."""
    start, (seed, step, steps, rate) = time.perf_counter(), place
    sentences = [
        Sentence(terms.adapter, sampled, terms.weight / (lesson.tokens * len(batch)))
        for lesson in batch
        for terms, sampled in lesson.calls
    ]
    order = list(policy.names.values())
    sentences.sort(key=lambda one: order.index(one.adapter))
    loss, norm = policy.imitate(sentences, config, seed_of(seed, "distill", step))
    tokens = sum(lesson.tokens for lesson in batch)
    return DistillReport(step + 1, steps, loss, tokens, norm, rate, time.perf_counter() - start)
