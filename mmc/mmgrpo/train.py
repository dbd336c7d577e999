"""The loop of mmGRPO: roll out, group, update; checkpoint after every step."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean

import torch

from mmc.data import Example
from mmc.engine.adapters import options
from mmc.engine.base import Engine, seed_of
from mmc.engine.local import LocalEngine
from mmc.errors import UsageError
from mmc.mmgrpo import checkpoint
from mmc.mmgrpo.advantage import has_spread
from mmc.mmgrpo.group import Group, Rewards, form_groups
from mmc.mmgrpo.rollout import batch
from mmc.mmgrpo.update import UpdateReport, training_calls, update
from mmc.program.evaluate import evaluate
from mmc.program.graph import Program
from mmc.program.run import RunSettings, run_all
from mmc.program.trajectory import Trajectory
from mmc.spec.model import MmGrpo

SHARED = "shared"
"""Name of the adapter that all trained modules share."""


@dataclass(frozen=True)
class StepReport:
    """One finished step. Rewards and shares are means over its runs or groups."""

    step: int
    steps: int
    reward: float
    spread: float
    """Mean over groups of max - min reward."""
    useful: float
    """Share of groups with spread."""
    failures: float
    """Share of interrupted runs."""
    groups: int
    loss: float
    entropy: float
    kl: float
    clipped: float
    grad_norm: float
    drift: float
    learning_rate: float
    tokens: int
    """Tokens that carried gradient."""
    tokens_packed: int
    """Distinct tokens computed for them."""
    tokens_plain: int
    """Tokens that one sequence at a time would have computed."""
    seconds_rollout: float
    seconds_update: float
    seconds: float
    dev: float | None = None


@dataclass(frozen=True)
class TrainingJob:
    """What to train, on what, and where to keep checkpoints and ``metrics.jsonl``; resumes from there."""

    program: Program
    engines: Mapping[str, Engine]
    train: Sequence[Example]
    dev: Sequence[Example]
    config: MmGrpo
    seed: int
    folder: Path
    initial: Mapping[str, Path] = field(default_factory=dict)
    """Module -> adapter folder to go on from; a fresh adapter where there is none."""
    on_step: Callable[[StepReport], None] = lambda report: None


@dataclass(frozen=True)
class TrainingResult:
    """The trained adapters by module (folders in PEFT format) and the program that uses them."""

    adapters: Mapping[str, Path]
    program: Program
    steps: int


def train(job: TrainingJob) -> TrainingResult:
    """Runs (or resumes) the training. Raises UsageError when no module can be trained."""
    names = _adapter_names(job)
    engine = _engine(job, names)
    config = job.config
    for name in dict.fromkeys(names.values()):
        _begin(job, engine, name, next(m for m, n in names.items() if n == name))
    program = job.program.with_adapters(names)
    optimizer = _optimizer(engine, names, config)
    done, best = _resume(job, engine, names, optimizer)
    with (job.folder / "metrics.jsonl").open("a", encoding="utf-8") as metrics:
        for step in range(done, config.steps):
            report = train_step(job, program, engine, optimizer, step)
            last = step + 1 == config.steps
            if config.evaluate_every and ((step + 1) % config.evaluate_every == 0 or last):
                report, best = _evaluate(job, program, engine, report, best)
            checkpoint.save(job.folder, step + 1, engine.adapters, dict.fromkeys(names.values()), optimizer, best)
            metrics.write(json.dumps(asdict(report)) + "\n")
            metrics.flush()
            job.on_step(report)
    return _result(job, program, engine, names, best)


def train_step(
    job: TrainingJob, program: Program, engine: LocalEngine, optimizer: torch.optim.Optimizer, step: int
) -> StepReport:
    """One step of the paper's algorithm 1."""
    config, start = job.config, time.perf_counter()
    rate = learning_rate(config, step)
    for group in optimizer.param_groups:
        group["lr"] = rate
    examples = batch(job.train, config.examples, step, job.seed)
    settings = RunSettings(stage="weights", step=step, seed=job.seed, temperature=config.temperature)
    runs = run_all(program, job.engines, examples, settings, rollouts=config.rollouts)
    sampled = time.perf_counter()

    names = _adapter_names(job)
    groups = form_groups(runs, names.keys(), Rewards(config.failure_reward, config.format_reward), config.groups)
    kept = groups if config.kl else [g for g in groups if has_spread(g.rewards_C)]
    calls = training_calls(kept, config, names, {m: job.program.spec.modules[m].max_tokens for m in names})
    torch.manual_seed(seed_of(job.seed, "update", step))
    result = update(engine, optimizer, calls, config)
    plain = sum(len(c.sampled.needed) for c in calls)
    return _report(job, (step, rate, plain), runs, groups, result, (start, sampled))


def learning_rate(config: MmGrpo, step: int) -> float:
    """Linear warm-up from 0, then constant or falling linearly to a tenth."""
    if step < config.warmup:
        return config.learning_rate * (step + 1) / config.warmup
    if not config.decay:
        return config.learning_rate
    share = (step - config.warmup) / max(1, config.steps - config.warmup)
    return config.learning_rate * (1 - 0.9 * share)


def _adapter_names(job: TrainingJob) -> dict[str, str]:
    """Trained module -> name of its adapter."""
    trained = [name for name, module in job.program.spec.modules.items() if module.train]
    shared = job.config.adapters == "shared"
    return {name: f"{job.folder.name}.{SHARED if shared else name}" for name in trained}


def _begin(job: TrainingJob, engine: LocalEngine, name: str, module: str) -> None:
    """Puts an adapter in place: the one to go on from, or a fresh one."""
    if module in job.initial:
        engine.adapters.load(name, job.initial[module])
    else:
        seed = seed_of(job.seed, "adapter", name.rpartition(".")[2])
        engine.adapters.create(name, options(job.config.lora), seed)


def _engine(job: TrainingJob, names: Mapping[str, str]) -> LocalEngine:
    """The one local engine that all trained modules run on."""
    models = {job.program.spec.modules[module].model for module in names}
    if len(models) != 1:
        raise UsageError(
            "weights: no module is trained; give one `train: true`"
            if not models
            else f"weights: the trained modules use different models ({', '.join(sorted(models))}); train one model at a time"
        )
    engine = job.engines[models.pop()]
    if not isinstance(engine, LocalEngine):
        raise UsageError(
            "weights: only modules on a `type: local` model can be trained; set `train: false` on the others"
        )
    return engine


def _optimizer(engine: LocalEngine, names: Mapping[str, str], config: MmGrpo) -> torch.optim.Optimizer:
    tensors = [p for name in dict.fromkeys(names.values()) for p in engine.adapters.parameters(name).values()]
    return torch.optim.AdamW(tensors, lr=config.learning_rate, betas=(0.9, 0.99), weight_decay=0.0)


def _resume(
    job: TrainingJob, engine: LocalEngine, names: Mapping[str, str], optimizer: torch.optim.Optimizer
) -> tuple[int, tuple[float, int] | None]:
    """How many steps are done, and the best dev score so far; tensors are put back."""
    job.folder.mkdir(parents=True, exist_ok=True)
    found = checkpoint.latest(job.folder)
    checkpoint.trim_metrics(job.folder / "metrics.jsonl", found.step if found else 0)
    if found is None:
        return 0, None
    checkpoint.restore(found, engine.adapters, dict.fromkeys(names.values()), optimizer)
    return found.step, found.best


def _evaluate(
    job: TrainingJob, program: Program, engine: LocalEngine, report: StepReport, best: tuple[float, int] | None
) -> tuple[StepReport, tuple[float, int]]:
    """Scores dev greedily and keeps the adapters when they are the best so far."""
    settings = RunSettings(stage="weights-dev", step=0, seed=job.seed, temperature=0.0)
    score = evaluate(program, job.engines, job.dev, settings).interval.mean
    if best is None or score > best[0]:
        best = (score, report.step)
        _save_adapters(engine, _adapter_names(job), job.folder / "best")
    return StepReport(**asdict(report) | {"dev": score}), best


def _save_adapters(engine: LocalEngine, names: Mapping[str, str], folder: Path) -> None:
    temporary = folder.with_suffix(".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    for name in dict.fromkeys(names.values()):
        engine.adapters.save(name, temporary / name.rpartition(".")[2])
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)


def _result(
    job: TrainingJob, program: Program, engine: LocalEngine, names: Mapping[str, str], best: tuple[float, int] | None
) -> TrainingResult:
    """Writes ``final/``: the best adapters on dev where dev was looked at, else the last."""
    final = job.folder / "final"
    if best is not None:
        for name in dict.fromkeys(names.values()):
            engine.adapters.load(name, job.folder / "best" / name.rpartition(".")[2])
    _save_adapters(engine, names, final)
    folders = {module: final / name.rpartition(".")[2] for module, name in names.items()}
    return TrainingResult(folders, program, job.config.steps)


def _report(
    job: TrainingJob,
    at: tuple[int, float, int],
    runs: Sequence[Trajectory],
    groups: Sequence[Group],
    result: UpdateReport,
    times: tuple[float, float],
) -> StepReport:
    spreads = [max(g.rewards_C) - min(g.rewards_C) for g in groups] or [0.0]
    tokens, now = max(1, result.tokens), time.perf_counter()
    return StepReport(
        step=at[0] + 1,
        steps=job.config.steps,
        reward=fmean(t.reward for t in runs),
        spread=fmean(spreads),
        useful=fmean(s > 1e-9 for s in spreads),
        failures=fmean(t.ending != "done" for t in runs),
        groups=len(groups),
        loss=result.loss,
        entropy=result.entropy / tokens,
        kl=result.kl / tokens,
        clipped=result.clipped / tokens / job.config.inner_epochs,
        grad_norm=result.grad_norm,
        drift=result.drift,
        learning_rate=at[1],
        tokens=result.tokens,
        tokens_packed=result.packed,
        tokens_plain=at[2],
        seconds_rollout=times[1] - times[0],
        seconds_update=now - times[1],
        seconds=now - times[0],
    )
