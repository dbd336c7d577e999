"""Scores of every stage, as they stand in manifest.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from mmc.metric import paired
from mmc.program.usage import ByModule

SCHEMA_VERSION: Literal[1] = 1


@dataclass(frozen=True)
class StageScore:
    """A stage's held-out scores: those of the program that was kept after it. ``traces`` is a JSONL file."""

    stage: str
    split: str
    score: float
    low: float
    high: float
    n: int
    scores: tuple[float, ...]
    kept: bool
    note: str
    seconds: float
    tokens: int
    failures: dict[str, int]
    traces: Path
    parts: Mapping[str, float] = field(default_factory=dict)
    """Means of the named parts of a combined metric."""


@dataclass(frozen=True)
class Work:
    """One piece of work of a compile: what it used by module (None: not known), and how long it took (None: not known)."""

    stage: str
    what: str
    seconds: float | None
    modules: ByModule | None


class Difference(BaseModel):
    """Paired mean difference to the start on the same examples, with its 95% interval."""

    model_config = ConfigDict(extra="forbid")
    mean: float
    low: float
    high: float


class StageEntry(BaseModel):
    """One stage in the manifest."""

    model_config = ConfigDict(extra="forbid")
    stage: str
    split: str
    score: float
    low: float
    high: float
    n: int
    to_start: Difference
    kept: bool
    note: str
    failures: dict[str, int]
    tokens_scored: int
    seconds: float
    parts: dict[str, float] = {}


class UsageEntry(BaseModel):
    """What one module's calls used. ``dollars``: what providers billed; null when a price is not known."""

    model_config = ConfigDict(extra="forbid")
    calls: int
    prompt_tokens: int
    completion_tokens: int
    dollars: float | None


class WorkEntry(BaseModel):
    """One piece of work in the ledger; null: not known."""

    model_config = ConfigDict(extra="forbid")
    stage: str
    what: str
    seconds: float | None
    modules: dict[str, UsageEntry] | None


class Manifest(BaseModel):
    """manifest.json."""

    model_config = ConfigDict(extra="forbid")
    schema_version: Literal[1] = SCHEMA_VERSION
    name: str
    version: str
    metric: str
    stages: list[StageEntry]
    ledger: list[WorkEntry] = []
    """What each stage and scoring used, by module, and how long it took."""
    machine: dict[str, str] = {}
    """What the compile ran on."""


def stage_entries(stages: Sequence[StageScore]) -> list[StageEntry]:
    """The stages as the manifest has them; the first is the start."""
    start = stages[0]
    entries = []
    for stage in stages:
        gain = paired(start.scores, stage.scores)
        entries.append(
            StageEntry(
                stage=stage.stage,
                split=stage.split,
                score=stage.score,
                low=stage.low,
                high=stage.high,
                n=stage.n,
                to_start=Difference(mean=gain.mean, low=gain.low, high=gain.high),
                kept=stage.kept,
                note=stage.note,
                failures=stage.failures,
                tokens_scored=stage.tokens,
                seconds=stage.seconds,
                parts=dict(stage.parts),
            )
        )
    return entries


def work_entries(ledger: Sequence[Work]) -> list[WorkEntry]:
    """The ledger as the manifest has it."""
    return [
        WorkEntry(
            stage=work.stage,
            what=work.what,
            seconds=None if work.seconds is None else round(work.seconds, 1),
            modules=None if work.modules is None else {n: UsageEntry(**asdict(u)) for n, u in work.modules.items()},
        )
        for work in ledger
    ]
