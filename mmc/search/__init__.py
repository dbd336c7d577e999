"""Prompt search: puts other text into the slots of a program's templates, and keeps what scores better on dev.

base       what a search is given and gives back
demos      demonstrations from training examples
space      what may stand in each slot; candidates
propose    texts that a model writes, checked before they are run
trials     candidates meet the same dev examples; the verdict on the best
ledger     what was spent, against the budget
journal    finished work on disk, so that a search resumes
verdict    better, or luck
halving    successive halving
bootstrap  demonstrations alone
mipro      proposed instructions and demonstrations, chosen by a Parzen estimator
gepa       reflective evolution with a Pareto front
cost       how many runs a search makes

To add a strategy: a file with a function that satisfies :class:`mmc.search.base.Strategy`, its block as a pydantic
model with an ``algorithm`` of its own in :mod:`mmc.spec.searches`, and an entry in ``STRATEGIES``. Do every piece of
work that costs model calls inside ``Journal.once``, count it in the ledger, and let ``Trials.conclude`` judge at the end.
"""

from __future__ import annotations

from collections.abc import Mapping

from mmc.search.base import SearchConfig, SearchJob, SearchResult, Strategy, Trial, TrialReport
from mmc.search.bootstrap import bootstrap
from mmc.search.gepa import gepa
from mmc.search.halving import halving
from mmc.search.mipro import mipro

__all__ = ["STRATEGIES", "SearchConfig", "SearchJob", "SearchResult", "Strategy", "Trial", "TrialReport", "search"]

STRATEGIES: Mapping[str, Strategy] = {
    "halving": halving,
    "bootstrap": bootstrap,
    "mipro": mipro,
    "gepa": gepa,
}
"""The ``algorithm`` of a ``compile.prompts`` block -> the strategy."""


def search(job: SearchJob) -> SearchResult:
    """Runs or resumes the search that the job's config names."""
    return STRATEGIES[job.config.algorithm](job)
