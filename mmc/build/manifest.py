"""Scores of every stage, as they stand in manifest.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from mmc.metric import paired

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


class Manifest(BaseModel):
    """manifest.json."""

    model_config = ConfigDict(extra="forbid")
    schema_version: Literal[1] = SCHEMA_VERSION
    name: str
    version: str
    metric: str
    stages: list[StageEntry]


def make_manifest(name: str, version: str, metric: str, stages: Sequence[StageScore]) -> Manifest:
    """The manifest of a build."""
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
    return Manifest(name=name, version=version, metric=metric, stages=entries)
