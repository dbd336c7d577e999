"""What a compile would do: which stages are done, stale or waiting and why, and what the rest costs at least and at most.

Nothing is run and no model is loaded. Estimates of tokens and time rest on what earlier scorings of this spec measured;
without any, tokens rest on the lengths of templates, and time is not known.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mmc.compile.pipeline import CompileJob, known_gate, run_folder, stage_inputs
from mmc.compile.record import changed_keys, read_json
from mmc.compile.stages import first_state, state_after
from mmc.compile.state import Context, State, known_score
from mmc.data import SPLITS, Example, load_split
from mmc.program.bounds import calls_of, total
from mmc.program.graph import Program
from mmc.search.cost import search_cost
from mmc.spec.model import OpenAiModel, RemoteModel

Status = Literal["done", "begun", "stale", "to do", "waiting"]


@dataclass(frozen=True)
class Range:
    """At least and at most."""

    low: float
    high: float

    def __add__(self, other: Range) -> Range:
        return Range(self.low + other.low, self.high + other.high)

    def __mul__(self, other: Range) -> Range:
        return Range(self.low * other.low, self.high * other.high)


@dataclass(frozen=True)
class StagePlan:
    """One stage: where it stands, and what is left to do in it (all runs of a stage that would start over)."""

    stage: str
    status: Status
    why: str
    runs: Range
    """Runs of the program, its scoring before and after included."""
    calls: Range
    tokens: Range
    dollars: Range | None
    """None: the price of a model is not known."""
    seconds: Range | None
    """None: not known before something was measured."""


@dataclass(frozen=True)
class Plan:
    """All stages, and what the estimates rest on."""

    folder: Path
    stages: tuple[StagePlan, ...]
    rests_on: tuple[str, ...]

    @property
    def work(self) -> bool:
        """Whether a compile would find something to do."""
        return any(stage.status != "done" for stage in self.stages)


def make_plan(job: CompileJob) -> Plan:
    """The plan of a compile. Raises InvalidError as the compile would."""
    loaded, folder = job.loaded, run_folder(job)
    program = Program.build(loaded, job.trust)
    data: dict[str, Sequence[Example]] = {split: load_split(loaded, split) for split in SPLITS}
    context = Context({}, data, loaded.spec.compile.seed, folder, folder / "scores", job.progress, job.trust)
    costs = _Costs(program, folder)
    begin = first_state(program)
    scored = known_score(context, begin, "test") is not None
    first = costs.stage(
        "start", "done" if scored else "to do", "", Range(0, 0) if scored else _exactly(len(data["test"]))
    )
    stages: list[StagePlan] = [first]
    state: State | None = begin
    for number, name in enumerate(loaded.spec.compile.strategy, 1):
        stage, state = _stage(context, state, (number, name), costs)
        stages.append(stage)
    return Plan(folder, tuple(stages), tuple(costs.rests_on))


def _stage(
    context: Context, state: State | None, which: tuple[int, str], costs: _Costs
) -> tuple[StagePlan, State | None]:
    """One stage, and the state after it; None when that is not known before it has run."""
    number, name = which
    label, folder = f"{number} {name}", context.folder / f"{number}-{name}"
    compile_ = costs.program.spec.compile
    # A stage that changes nothing is not scored, and dev not again where a search has met all of it.
    dev = 2 * len(context.data["dev"]) if compile_.gate else 0
    scoring = Range(0, len(context.data["test"]) + dev)
    whole = costs.runs(name, context.data) + scoring
    if state is None:
        return costs.stage(label, "waiting", "for the stages before it", whole), None
    old, now = read_json(folder / "inputs.json"), stage_inputs(context, state, name)
    now = json.loads(json.dumps(now, default=str))
    if old is None:
        return costs.stage(label, "to do", "was never run", whole), None
    if old != now:
        changed = changed_keys(old, now)
        why = f"changed since: {', '.join(changed[:6])}" + (", ..." if len(changed) > 6 else "")
        return costs.stage(label, "stale", why, whole), None
    if not (folder / "result.json").exists():
        return costs.stage(label, "begun", f"goes on from {_reached(folder)}", whole), None
    after = state_after(name, state, folder)
    kept = known_gate(context, (state, after), folder) if compile_.gate else True
    if kept is None:
        return costs.stage(label, "begun", "its scores are missing", scoring), None
    state = after if kept else state
    if known_score(context, state, "test") is None:
        return costs.stage(label, "begun", "its scores are missing", scoring), state
    return costs.stage(label, "done", "" if kept else "rolled back", Range(0, 0)), state


def _reached(folder: Path) -> str:
    """Where an unfinished stage stands."""
    metrics, journal = folder / "training/metrics.jsonl", folder / "search/journal.jsonl"
    if metrics.exists():
        return f"step {len(metrics.read_bytes().splitlines())}"
    if journal.exists():
        return f"{max(0, len(journal.read_bytes().splitlines()) - 1)} finished pieces of work"
    return "its beginning"


class _Costs:
    """What runs cost: measured in earlier scorings, or estimated."""

    def __init__(self, program: Program, folder: Path) -> None:
        self.program, self.spec = program, program.spec
        self.calls = Range(*map(float, total(program.spec)))
        measured = [read_json(path) for path in sorted((folder / "scores").glob("*.json"))]
        runs = sum(len(found["scores"]) for found in measured)
        self.rests_on: list[str] = []
        self.seconds: float | None = None
        if runs:
            tokens = sum(found["tokens"] for found in measured) / runs
            self.tokens = Range(0.5 * tokens, 2.0 * tokens)
            self.seconds = sum(found["seconds"] for found in measured) / runs
            self.rests_on.append(
                f"tokens and time: {runs} scored runs of this spec, {tokens:,.0f} tokens and {self.seconds:.2g} s each; "
                "half to double of that; training costs more time a run than scoring"
            )
        else:
            self.tokens = self._estimated()
            self.rests_on.append(
                "tokens: lengths of the templates, 3 to 5 characters a token, and max_tokens; what steps fill in comes on top"
            )
            self.rests_on.append("time: nothing was measured yet; it is known once the start is scored")
        low, high = total(program.spec)
        self.rests_on.append(
            f"calls: {low if low == high else f'{low} to {high}'} a run, by the steps and program.max_calls"
        )
        if turned := [key for key in getattr(self.spec.compile.prompts, "knobs", {}) if key.startswith("program.")]:
            self.rests_on.append(f"not counted: more calls a run by the knobs {', '.join(turned)}")
        self.prices = self._prices()
        asked = [name for name in (getattr(self.spec.compile.prompts, "proposer", None),) if name]
        asked += sorted({judge.module for judge in program.judges})
        if asked:
            self.rests_on.append(f"not counted: what is asked of {', '.join(asked)}")

    def _estimated(self) -> Range:
        """Tokens a run: prompts of what the templates hold, and completions of up to max_tokens."""
        low = high = 0.0
        bounds = calls_of(self.spec)
        for name, module in self.spec.modules.items():
            length = len(self.program.templates[name].source)
            low += bounds.low.get(name, 0) * (length / 5 + 1)
            high += bounds.high.get(name, 0.0) * (length / 3 + module.max_tokens)
        return Range(low, high)

    def _prices(self) -> dict[str, tuple[float, float] | None]:
        """Remote model -> dollars a prompt token and a completion token; None: not known."""
        remote = {n: m for n, m in self.spec.models.items() if isinstance(m, RemoteModel)}
        used = {module.model for module in self.spec.modules.values()} & set(remote)
        found: dict[str, tuple[float, float] | None] = {}
        for name in sorted(used):
            found[name], said = _price(remote[name])
            self.rests_on.append(f"dollars: {said} for {remote[name].model}")
        return found

    def dollars(self, runs: Range) -> Range | None:
        """What ``runs`` cost; local models cost nothing."""
        if None in self.prices.values():
            return None
        bounds, found = calls_of(self.spec), Range(0, 0)
        for name, module in self.spec.modules.items():
            price = self.prices.get(module.model)
            if price is not None:
                length = len(self.program.templates[name].source)
                low = bounds.low.get(name, 0) * length / 5 * price[0]
                high = bounds.high.get(name, 0.0) * (length / 3 * price[0] + module.max_tokens * price[1])
                found += Range(low, high)
        return found * runs

    def runs(self, name: str, data: Mapping[str, Sequence[Example]]) -> Range:
        """Runs of the program in a stage, its scoring aside."""
        config: Any = getattr(self.spec.compile, name)
        train, dev = len(data["train"]), len(data["dev"])
        if name == "prompts":
            return Range(*search_cost(config, train, dev))
        taught = sum(teacher.rollouts for teacher in config.teachers)
        examples = min(config.examples, train)
        if name == "distill":
            return _exactly(examples * (config.rollouts + taught))
        each = config.steps * examples * (config.rollouts + taught)
        evaluations = -(-config.steps // config.evaluate_every) if config.evaluate_every else 0
        low = each if not config.patience else min(config.steps, config.evaluate_every) * each / config.steps
        return Range(low, each * (1 + config.resample) + evaluations * dev)

    def stage(self, label: str, status: Status, why: str, runs: Range) -> StagePlan:
        calls = runs * self.calls
        seconds = None if self.seconds is None else runs * Range(0.5 * self.seconds, 4 * self.seconds)
        return StagePlan(label, status, why, runs, calls, runs * self.tokens, self.dollars(runs), seconds)


def _price(config: RemoteModel) -> tuple[tuple[float, float] | None, str]:
    """Dollars a prompt token and a completion token, and where they come from."""
    if isinstance(config, OpenAiModel):
        own = config.price
        return (None, "no price is given") if own is None else ((own.input / 1e6, own.output / 1e6), "the spec's price")
    from mmc.engine.litellm import price_of

    price = price_of(config.model)
    return price, "no price is known" if price is None else "prices of LiteLLM's table"


def _exactly(count: float) -> Range:
    return Range(count, count)
