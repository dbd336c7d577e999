"""The ablation of a spec's strategy: the start, prompts alone, weights alone and both, over several seeds.

Each seed is a compile of the whole strategy and one of each half. A stage that starts from the same program with the same
seed in two of them is run once: `prompts` of [prompts, weights] is that of [prompts].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from mmc.build import StageScore
from mmc.compile.pipeline import CompileJob, run_folder, run_stages
from mmc.compile.record import locked, write_json
from mmc.errors import UsageError
from mmc.metric import Interval, interval, paired

START, PROMPTS, WEIGHTS, BOTH = "start", "prompts", "weights", "prompts + weights"


@dataclass(frozen=True)
class Cell:
    """One arm with one seed: the held-out scores of the program it ended with."""

    arm: str
    seed: int
    scores: tuple[float, ...]
    minutes: float
    """Of its stages, the scoring of test included."""
    notes: tuple[str, ...]
    """What each of its stages came to."""
    parts: Mapping[str, float]
    """Means of the named parts of a combined metric."""


@dataclass(frozen=True)
class Row:
    """One arm over all seeds. Scores are averaged example by example first, so intervals are over examples alone."""

    arm: str
    score: Interval
    gain: Interval
    """Over the start, on the same examples."""
    by_seed: tuple[float, ...]


@dataclass(frozen=True)
class Matrix:
    """All cells of an ablation."""

    name: str
    seeds: tuple[int, ...]
    cells: tuple[Cell, ...]

    @property
    def rows(self) -> list[Row]:
        """The table: one row an arm, the start first."""
        start = self._mean(START)
        return [
            Row(
                arm=arm,
                score=interval(self._mean(arm)),
                gain=paired(start, self._mean(arm)),
                by_seed=tuple(fmean(cell.scores) for cell in self.cells if cell.arm == arm),
            )
            for arm in (START, PROMPTS, WEIGHTS, BOTH)
        ]

    def _mean(self, arm: str) -> list[float]:
        return [fmean(values) for values in zip(*(c.scores for c in self.cells if c.arm == arm), strict=True)]


def run_matrix(job: CompileJob, seeds: Sequence[int]) -> Matrix:
    """Runs or resumes the ablation; also leaves it as ``matrix.json`` beside the builds.

    Raises UsageError when the strategy has no prompt search or no training.
    """
    strategy: list[str] = list(job.loaded.spec.compile.strategy)
    arms = {
        BOTH: strategy,
        PROMPTS: [stage for stage in strategy if stage == "prompts"],
        WEIGHTS: [stage for stage in strategy if stage != "prompts"],
    }
    if not arms[PROMPTS] or not arms[WEIGHTS]:
        raise UsageError(
            f"a matrix compares prompts with weights, but compile.strategy is [{', '.join(strategy)}]; "
            "it needs `prompts` and one of `distill` and `weights`"
        )
    cells: list[Cell] = []
    for seed in seeds:
        whole = _stages(job, seed, BOTH, strategy)
        cells += [_cell(START, seed, whole[:1]), _cell(BOTH, seed, whole)]
        cells += [_cell(arm, seed, _stages(job, seed, arm, arms[arm])) for arm in (PROMPTS, WEIGHTS)]
    matrix = Matrix(job.loaded.spec.name, tuple(seeds), tuple(cells))
    _write(job, matrix)
    return matrix


def _stages(job: CompileJob, seed: int, arm: str, strategy: Sequence[str]) -> list[StageScore]:
    """The scores of one compile; of the spec as it stands in the folder where `compile` would look for it."""
    home, spec = run_folder(job), job.loaded.spec.compile
    own = arm == BOTH and seed == spec.seed
    folder = home if own else home / "matrix" / f"{arm.replace(' + ', '-')}-{seed}"
    loaded = job.loaded.overridden([f"compile.strategy=[{', '.join(strategy)}]", f"compile.seed={seed}"])
    job.progress.say(f"matrix: {arm}, seed {seed}")
    with locked(folder):
        done = run_stages(replace(job, loaded=loaded), folder, home)
    if done.failure is not None:
        raise done.failure
    return done.stages


def _cell(arm: str, seed: int, stages: Sequence[StageScore]) -> Cell:
    notes = tuple(f"{stage.stage}: {stage.note}" for stage in stages[1:])
    minutes = sum(stage.seconds for stage in stages) / 60
    return Cell(arm, seed, stages[-1].scores, minutes, notes, stages[-1].parts)


def _write(job: CompileJob, matrix: Matrix) -> None:
    found = {
        "name": matrix.name,
        "seeds": matrix.seeds,
        "rows": [
            {"arm": row.arm, "score": _plain(row.score), "gain": _plain(row.gain), "by_seed": row.by_seed}
            for row in matrix.rows
        ],
        "cells": [
            {
                "arm": cell.arm,
                "seed": cell.seed,
                "minutes": round(cell.minutes, 1),
                "notes": cell.notes,
                "parts": cell.parts,
                "scores": cell.scores,
            }
            for cell in matrix.cells
        ],
    }
    write_json(job.out / matrix.name / "matrix.json", found)


def _plain(found: Interval) -> dict[str, float]:
    return {"mean": found.mean, "low": found.low, "high": found.high}
