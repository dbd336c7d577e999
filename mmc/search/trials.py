"""What all strategies do alike: candidates meet the same dev examples, greedily; the best one is judged against the start."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from statistics import fmean
from typing import Any

from mmc.data import Example
from mmc.engine.base import seed_of
from mmc.errors import UsageError
from mmc.metric import Interval, interval
from mmc.program.evaluate import evaluate
from mmc.program.graph import Program
from mmc.program.run import RunSettings
from mmc.search.base import SearchJob, SearchResult, Trial, TrialReport
from mmc.search.journal import Journal
from mmc.search.ledger import Ledger, usage_of_runs
from mmc.search.space import Refusal, Space
from mmc.search.verdict import LEVEL, Verdict, judge


@dataclass
class Entrant:
    """A candidate, and what it has scored so far: index of a dev example -> score."""

    number: int
    what: str
    program: Program
    scores: dict[int, float] = field(default_factory=dict)
    tokens: int = 0
    rounds: int = 0

    @property
    def mean(self) -> float:
        return fmean(self.scores.values())

    @property
    def rank(self) -> tuple[float, float, int]:
        """Better ones come first; equal scores: the shorter prompt, then the earlier draw."""
        return -self.mean, self.cost, self.number

    @property
    def cost(self) -> float:
        """Mean prompt tokens a run, or characters of the templates where the engine counts no tokens."""
        if self.tokens:
            return self.tokens / len(self.scores)
        return float(sum(len(t.source) for t in self.program.templates.values()))

    @property
    def trial(self) -> Trial:
        scores = tuple(self.scores[i] for i in sorted(self.scores))
        return Trial(self.number, self.what, self.rounds, scores, self.cost)


class Trials:
    """Scores entrants on dev examples, whose order is the seed's, whatever the file's own is.

    Raises UsageError without dev examples.
    """

    def __init__(self, job: SearchJob, journal: Journal, ledger: Ledger) -> None:
        if not job.dev:
            raise UsageError("prompts: there are no dev examples to choose by")
        self.job, self.journal, self.ledger = job, journal, ledger
        self.order: list[Example] = sorted(job.dev, key=lambda e: (seed_of(job.seed, "dev", e.id), e.id))
        self.total = self.done = 0
        """Evaluations expected, which a strategy sets for what is shown meanwhile; and made."""

    def score(self, entrant: Entrant, indexes: Sequence[int], round_: int) -> bool:
        """Scores an entrant on those of the examples it has not met, or reads what that gave; False: the budget is spent."""
        fresh = [i for i in indexes if i not in entrant.scores]
        if fresh and self.ledger.spent:
            return False
        self.done += 1
        entrant.rounds += 1
        if not fresh:
            return True
        began = time.perf_counter()
        prompts = {name: template.sha256 for name, template in entrant.program.templates.items()}
        examples = [self.order[i] for i in fresh]
        key = ["evaluate", entrant.number, prompts, round_, [example.id for example in examples]]
        new = key not in self.journal
        record = self.journal.once(key, lambda: self._run(entrant, examples))
        self.ledger.add(record["usage"])
        entrant.scores.update(zip(fresh, record["scores"], strict=True))
        entrant.tokens += record["tokens"]
        if new:
            score, seconds = interval(list(entrant.scores.values())), time.perf_counter() - began
            self.job.on_trial(TrialReport(self.done, max(self.total, self.done), round_, score, entrant.what, seconds))
        return True

    def _run(self, entrant: Entrant, examples: Sequence[Example]) -> dict[str, Any]:
        settings = RunSettings("prompts", 0, self.job.seed, 0.0)
        done = evaluate(entrant.program, self.job.engines, examples, settings)
        completions = [call.completion for t in done.trajectories for call in t.calls]
        return {
            "what": entrant.what,
            "scores": done.scores,
            "tokens": sum(c.prompt_tokens for c in completions),
            "usage": usage_of_runs(done.trajectories),
            "failures": done.failures,
        }

    def gain(self, start: Entrant, entrant: Entrant, indexes: Sequence[int]) -> float:
        """Mean of the entrant's scores less the start's on the same examples."""
        return fmean(entrant.scores[i] - start.scores[i] for i in indexes)

    def conclude(
        self,
        start: Entrant,
        finalist: Entrant | None,
        tried: Sequence[Entrant],
        refusals: Sequence[Refusal],
        note: str = "",
    ) -> SearchResult:
        """The verdict on the finalist, on the examples it and the start have met."""
        last = finalist or start
        met = sorted(start.scores.keys() & last.scores.keys())
        before, after = [start.scores[i] for i in met], [last.scores[i] for i in met]
        verdict = judge(before, after, sum(bool(entrant.scores) for entrant in tried)) if met else _NOTHING
        best = last if finalist is not None and verdict.better else start
        refused = [Trial(len(tried) + i, r.what, 0, (), 0.0, r.reason) for i, r in enumerate(refusals, 1)]
        said = _note(finalist, verdict, len(met)) if met else "the start is kept: nothing was compared with it"
        parts = [said, note]
        if self.ledger.spent:
            parts.append(f"the budget is spent: {self.ledger.spent}")
        return SearchResult(
            program=best.program,
            trials=(start.trial, *(entrant.trial for entrant in tried), *refused),
            examples=tuple(self.order[i].id for i in met),
            start_scores=tuple(before),
            best_scores=tuple(after if best is not start else before),
            difference=verdict.difference,
            replaced=best is not start,
            note="; ".join(part for part in parts if part),
            finalist=None if finalist is None else finalist.number,
            usage=self.ledger.modules,
        )


_NOTHING = Verdict(False, Interval(0.0, 0.0, 0.0, 0), 1.0, LEVEL)
"""Of a search that ended before its first comparison."""


def _note(finalist: Entrant | None, verdict: Verdict, examples: int) -> str:
    if finalist is None:
        return (
            "the start is kept: nothing may be changed; give a module candidates, alternatives or a slot `demos`, or the "
            "search `knobs`"
        )
    gain = verdict.difference
    found = f"{finalist.what}: {gain.mean:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}] on {examples} dev examples"
    chance = f"p = {verdict.p:.2g}, {'within' if verdict.better else 'needed'} {verdict.level:.2g}"
    if verdict.better:
        return f"replaced the start with {found} ({chance})"
    if gain.mean <= 0:
        return f"the start is kept: the best candidate is no better ({found})"
    return f"the start is kept: noise explains the best candidate's gain ({found}; {chance})"


def draw_entrants(space: Space, count: int, seed: int) -> tuple[list[Entrant], list[Refusal]]:
    """The first ``count`` candidates that can be used, and those passed over."""
    entrants: list[Entrant] = []
    refusals: list[Refusal] = []
    for candidate in islice(space.draw(seed), 4 * count):
        made = space.build(candidate)
        if isinstance(made, Refusal):
            refusals.append(made)
        elif len(entrants) < count:
            entrants.append(Entrant(len(entrants) + 1, space.describe(candidate), made))
        if len(entrants) == count:
            break
    return entrants, refusals
