"""The stages a strategy is made of. To add one: a function that satisfies ``Stage``, and an entry in ``STAGES``."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mmc.compile.record import append_line, read_json, write_json
from mmc.compile.state import Context, State
from mmc.errors import needing
from mmc.program.graph import Program
from mmc.program.usage import plain_usage
from mmc.prompt import Template
from mmc.search import SearchJob, Trial, TrialReport, search

Stage = Callable[[Context, State, Path], tuple[State, str]]
"""(what the compile shares, the program so far, the stage's folder) -> the program after it, the outcome in a sentence.
A stage resumes from its folder and leaves its result there."""


def prompts(context: Context, state: State, folder: Path) -> tuple[State, str]:
    """Prompt search: edits slots."""
    found = read_json(folder / "result.json")
    if found is None:
        context.progress.begin("prompt search", 1)

        def on_trial(report: TrialReport) -> None:
            if report.trial:
                append_line(folder / "trials.jsonl", _curve(report))
                context.tracking.look(folder)
            context.progress.begin("prompt search", max(1, report.trials))
            context.progress.advance(
                report.trial, f"round {report.round}: {report.what} {report.score.mean:.3f}", report.score.mean
            )

        resumed, began = (folder / "search/journal.jsonl").exists(), time.perf_counter()
        result = search(
            SearchJob(
                program=state.program,
                engines=context.engines,
                train=context.data["train"],
                dev=context.data["dev"],
                config=state.program.spec.compile.prompts,
                seed=context.seed,
                folder=folder / "search",
                held_out=context.data["test"],
                on_trial=on_trial,
                say=lambda line: context.progress.say(f"prompts: {line}"),
            )
        )
        templates = {name: {"path": str(t.path), "source": t.source} for name, t in result.program.templates.items()}
        scores = {"examples": result.examples, "before": result.start_scores, "after": result.best_scores}
        found = {
            "note": result.note,
            "replaced": result.replaced,
            "templates": templates,
            "settings": dict(result.program.settings),
            "dev": scores,
            "trials": [_trial(trial) for trial in result.trials],
            "finalist": result.finalist,
            "usage": None if result.usage is None else plain_usage(result.usage),
            # A journal keeps no times, so what a killed search spent is not known.
            "seconds": None if resumed else round(time.perf_counter() - began, 1),
        }
        write_json(folder / "result.json", found)
    return state_after("prompts", state, folder), found["note"]


def _curve(report: TrialReport) -> dict[str, Any]:
    """One evaluation of a candidate, as it stands in ``trials.jsonl``; those of a resumed search go on there."""
    score = report.score
    numbers = {"score": score.mean, "low": score.low, "high": score.high, "n": score.n}
    return {"what": report.what, "round": report.round, **numbers, "seconds": round(report.seconds, 3)}


def _trial(trial: Trial) -> dict[str, Any]:
    """One candidate, as the report and the viewer show it."""
    found = trial.score
    score = None if found is None else {"mean": found.mean, "low": found.low, "high": found.high, "n": found.n}
    keys = ("number", "what", "rounds", "tokens", "rejected")
    return {**{key: getattr(trial, key) for key in keys}, "score": score}


def weights(context: Context, state: State, folder: Path) -> tuple[State, str]:
    """mmGRPO: trains adapters."""
    with needing("local", "training"):
        from mmc.mmgrpo.report import StepReport
        from mmc.mmgrpo.train import TrainingJob, train
    found = read_json(folder / "result.json")
    if found is None:
        context.progress.begin("mmGRPO", state.program.spec.compile.weights.steps)

        def on_step(report: StepReport) -> None:
            context.tracking.look(folder)
            detail = f"reward {report.reward:.3f}, groups with spread {report.useful:.0%}"
            context.progress.advance(report.step, detail, report.reward)

        result = train(
            TrainingJob(
                program=state.program,
                engines=context.engines,
                train=context.data["train"],
                dev=context.data["dev"],
                config=state.program.spec.compile.weights,
                seed=context.seed,
                folder=folder / "training",
                initial=state.adapters,
                trust=context.trust,
                on_step=on_step,
                say=lambda line: context.progress.say(f"weights: {line}"),
            )
        )
        found = {"note": f"{result.steps} steps of mmGRPO", "adapters": _relative(result.adapters, folder)}
        write_json(folder / "result.json", found)
    return _loaded(context, state, state_after("weights", state, folder)), found["note"]


def distill(context: Context, state: State, folder: Path) -> tuple[State, str]:
    """Supervised training on passing runs."""
    with needing("local", "training"):
        from mmc.mmgrpo.distill import DistillJob, DistillReport
        from mmc.mmgrpo.distill import distill as run
    found = read_json(folder / "result.json")
    if found is None:

        def on_run(done: int, runs: int) -> None:
            context.progress.begin("distill: runs to learn from", runs)
            if done:
                context.progress.advance(done)

        def on_step(report: DistillReport) -> None:
            context.tracking.look(folder)
            context.progress.advance(report.step, f"loss {report.loss:.3f}", report.loss)

        result = run(
            DistillJob(
                program=state.program,
                engines=context.engines,
                train=context.data["train"],
                config=state.program.spec.compile.distill,
                seed=context.seed,
                folder=folder / "training",
                initial=state.adapters,
                trust=context.trust,
                on_run=on_run,
                on_lessons=lambda steps: context.progress.begin("distill", steps),
                on_step=on_step,
            )
        )
        what = f"{state.program.spec.compile.distill.by}s"
        note = f"{result.passed} of {result.runs} {what} passed, on {result.covered} of {result.examples} examples"
        spent = {"usage": plain_usage(result.usage), "seconds_runs": round(result.seconds_runs, 1)}
        found = {"note": note, "adapters": _relative(result.adapters, folder), **spent}
        write_json(folder / "result.json", found)
    return _loaded(context, state, state_after("distill", state, folder)), found["note"]


def _relative(adapters: Mapping[str, Path], folder: Path) -> dict[str, str]:
    return {module: str(path.relative_to(folder)) for module, path in adapters.items()}


def state_after(name: str, state: State, folder: Path) -> State:
    """The program after a finished stage, from the result in its folder. Needs no engine."""
    found = read_json(folder / "result.json")
    if name == "prompts":
        chosen = {module: Template(Path(t["path"]), t["source"]) for module, t in found["templates"].items()}
        return State(state.program.with_settings(found.get("settings", {})).with_templates(chosen), state.adapters)
    return state.with_adapters({module: folder / path for module, path in found["adapters"].items()})


def _loaded(context: Context, before: State, after: State) -> State:
    """The state after a stage, once the adapters that are new in it are loaded, each under its folder's name."""
    for module, folder in after.adapters.items():
        if before.adapters.get(module) != folder:
            engine: Any = context.engines[after.program.spec.modules[module].model]
            engine.adapters.load(str(folder), folder)
    return after


def first_state(program: Program) -> State:
    """The start. A build that is compiled again starts from its adapters."""
    modules = program.spec.modules
    folders = {m: program.loaded.resolve(path) for m, path in program.spec.adapters.items() if m in modules}
    return State(program).with_adapters(folders)


def load_first(context: Context, program: Program) -> State:
    """The start with its adapters loaded."""
    return _loaded(context, State(program), first_state(program))


STAGES: Mapping[str, Stage] = {"prompts": prompts, "distill": distill, "weights": weights}
"""Name in ``compile.strategy`` -> stage."""
