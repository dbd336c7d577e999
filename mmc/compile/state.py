"""The program between two stages, and its scores."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from typing import Any

import mmc
from mmc.build.lock import sha256_of
from mmc.compile.progress import Progress
from mmc.compile.record import digest, read_json, write_json
from mmc.compile.track import NOWHERE, Tracking
from mmc.data import Example, fingerprint
from mmc.engine.base import Engine
from mmc.metric import Interval, interval
from mmc.program.confidence import confidence, silent
from mmc.program.evaluate import evaluate
from mmc.program.graph import Program
from mmc.program.run import RunSettings
from mmc.program.trajectory import Call, Trajectory, all_calls
from mmc.program.usage import ByModule, plain_usage, usage_by_module, usage_from
from mmc.spec.model import Bm25Tool, EnumType


@dataclass(frozen=True)
class State:
    """A program and the adapters it runs with: module -> folder in PEFT format."""

    program: Program
    adapters: Mapping[str, Path] = field(default_factory=dict)

    def with_adapters(self, folders: Mapping[str, Path]) -> State:
        """The program with adapters for some modules, each named after its folder."""
        names: dict[str, str | None] = {module: str(folder) for module, folder in folders.items()}
        return State(self.program.with_adapters(names), {**self.adapters, **folders}) if folders else self

    def fingerprint(self) -> dict[str, Any]:
        """What its behaviour and its scores depend on."""
        spec = self.program.spec.model_dump(mode="json", by_alias=True)
        core = {key: spec[key] for key in ("models", "tools", "modules", "program", "metric")}
        return {
            "mmc": mmc.__version__,
            **core,
            "files": _files(self.program),
            "templates": {name: t.sha256 for name, t in self.program.templates.items()},
            "adapters": {module: _folder_digest(folder) for module, folder in self.adapters.items()},
        }


@dataclass(frozen=True)
class Context:
    """What every stage of one compile shares."""

    engines: Mapping[str, Engine]
    data: Mapping[str, Sequence[Example]]
    seed: int
    folder: Path
    scores: Path
    """Folder with the scores of programs on splits; several compiles may share it."""
    progress: Progress
    trust: bool = False
    siblings: Path | None = None
    """Folder below which other compiles may have run the same stages already."""
    tracking: Tracking = NOWHERE

    def data_fingerprint(self, *splits: str) -> dict[str, str]:
        return {split: fingerprint(self.data[split]) for split in splits}


@dataclass(frozen=True)
class Scored:
    """A program's scores on one split."""

    scores: tuple[float, ...]
    failures: Mapping[str, int]
    tokens: int
    seconds: float
    traces: Path
    parts: Mapping[str, float] = field(default_factory=dict)
    """Means of the named parts of a combined metric; an interrupted run counts 0."""
    usage: ByModule | None = None
    """None where it was not kept."""

    @property
    def interval(self) -> Interval:
        return interval(self.scores)


def score(context: Context, state: State, split: str, what: str) -> Scored:
    """Greedy scores on a split; kept, so that the same program on the same examples is scored once."""
    known = known_score(context, state, split)
    if known is None:
        _evaluate(context, state, split, _place(context, state, split), what)
        known = known_score(context, state, split)
        assert known is not None
    return known


def known_score(context: Context, state: State, split: str) -> Scored | None:
    """What :func:`score` gave earlier; None when it was not asked yet."""
    place = _place(context, state, split)
    found = read_json(place.with_suffix(".json"))
    if found is None:
        return None
    return Scored(
        scores=tuple(found["scores"]),
        failures=found["failures"],
        tokens=found["tokens"],
        seconds=found["seconds"],
        traces=place.with_suffix(".jsonl"),
        parts=found.get("parts", {}),
        usage=usage_from(found["usage"]) if "usage" in found else None,
    )


def _place(context: Context, state: State, split: str) -> Path:
    """Where the scores of a program on a split are kept, without a suffix."""
    inputs = {"state": state.fingerprint(), "data": context.data_fingerprint(split)}
    return context.scores / digest(inputs)[:24]


def _evaluate(context: Context, state: State, split: str, place: Path, what: str) -> None:
    import time

    examples, start, done = context.data[split], time.perf_counter(), 0
    context.progress.begin(f"{what}: scoring {split}", len(examples))

    def on_done(trajectory: Trajectory) -> None:
        nonlocal done
        done += 1
        context.progress.advance(done)

    settings = RunSettings(stage="eval", step=0, seed=context.seed, temperature=0.0)
    result = evaluate(state.program, context.engines, examples, settings, on_done)
    for line in silent(state.program.spec, confidence(state.program.spec, all_calls(result.trajectories))):
        context.progress.say(line)
    place.parent.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps(trace(t), ensure_ascii=False, default=str) + "\n" for t in result.trajectories)
    place.with_suffix(".jsonl").write_text("".join(lines), encoding="utf-8")
    calls = [call.completion for call in all_calls(result.trajectories)]
    named = sorted({part for t in result.trajectories for part in t.scores})
    found = {
        "split": split,
        "what": what,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "scores": result.scores,
        "parts": {part: fmean(t.scores.get(part, 0.0) for t in result.trajectories) for part in named},
        "failures": result.failures,
        "tokens": sum(c.prompt_tokens + c.completion_tokens for c in calls),
        "usage": plain_usage(usage_by_module(result.trajectories)),
        "seconds": round(time.perf_counter() - start, 3),
    }
    write_json(place.with_suffix(".json"), found)


def trace(trajectory: Trajectory) -> dict[str, Any]:
    """A trajectory as plain data, for people to read."""
    return {
        "example": trajectory.example_id,
        "rollout": trajectory.rollout,
        "reward": trajectory.reward,
        "scores": trajectory.scores,
        "ending": trajectory.ending,
        "error": trajectory.error,
        "outputs": trajectory.outputs,
        "calls": [_call(call) for call in trajectory.calls],
        "judged": [_call(call) for call in trajectory.judged],
        "tools": [{"tool": t.tool, "inputs": t.inputs, "result": t.result, "error": t.error} for t in trajectory.tools],
    }


def _call(call: Call) -> dict[str, Any]:
    done = call.completion
    pairs = zip(done.tokens_T, done.logprobs_T, strict=True)
    told = {"tokens": [{"token": token, "logprob": value} for token, value in pairs]} if done.tokens_T else {}
    return {
        "module": call.module,
        "index": call.index,
        "messages": [{"role": m.role, "content": m.content} for m in call.messages],
        "completion": done.text,
        "finish": done.finish,
        "outputs": call.outputs,
        "error": call.error,
        **told,
    }


def _files(program: Program) -> dict[str, str]:
    """Hashes of the corpora and enum files that the program reads."""
    loaded = program.loaded
    names = [tool.corpus for tool in loaded.spec.tools.values() if isinstance(tool, Bm25Tool)]
    for module in loaded.spec.modules.values():
        declared = (o.enum for o in module.outputs.values() if isinstance(o, EnumType) and isinstance(o.enum, str))
        names += [name for name in declared if "{{" not in name]
    return {name: sha256_of(loaded.resolve(name)) for name in names}


def _folder_digest(folder: Path) -> str:
    found = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        found.update(file.name.encode())
        found.update(file.read_bytes())
    return found.hexdigest()
