"""Successive halving over instructions, templates and demonstrations; needs no model to propose anything.

1. Run the start on training examples to find demonstrations.
2. Draw ``trials`` candidates from the cross product of what may stand in each slot.
3. Score them and the start, greedily, on the same dev examples; keep the better half; go on with twice as many
   examples, until one is left, which is scored on twice as many again, or dev is used up.
4. The last one replaces the start only if its gain is more than noise explains (:mod:`mmc.search.verdict`).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice
from statistics import fmean
from typing import Any

from mmc.data import Example
from mmc.engine.base import distinct, seed_of
from mmc.errors import UsageError
from mmc.metric import interval
from mmc.program.evaluate import evaluate
from mmc.program.graph import Program
from mmc.program.run import RunSettings
from mmc.search.base import SearchJob, SearchResult, Trial, TrialReport
from mmc.search.demos import find_demos
from mmc.search.journal import Journal, identity_of
from mmc.search.space import Refusal, Space, make_space
from mmc.search.verdict import Verdict, judge


@dataclass
class _Entrant:
    """A candidate in the race, and what it has scored so far."""

    number: int
    what: str
    program: Program
    scores: list[float] = field(default_factory=list)
    tokens: int = 0
    rounds: int = 0

    @property
    def rank(self) -> tuple[float, float, int]:
        """Better ones come first; equal scores: the shorter prompt, then the earlier draw."""
        return -fmean(self.scores), self.cost, self.number

    @property
    def cost(self) -> float:
        """Mean prompt tokens a run, or characters of the templates where the engine counts no tokens."""
        if self.tokens:
            return self.tokens / len(self.scores)
        return float(sum(len(t.source) for t in self.program.templates.values()))

    @property
    def trial(self) -> Trial:
        return Trial(self.number, self.what, self.rounds, tuple(self.scores), self.cost)


def halving(job: SearchJob) -> SearchResult:
    """Runs or resumes a search by successive halving. See :class:`mmc.search.base.Strategy`."""
    if not job.dev:
        raise UsageError("prompts: there are no dev examples to choose by")
    journal = Journal(job.folder / "journal.jsonl", identity_of(job))
    found = find_demos(job, journal)
    space, refused = make_space(job.program, found, job.config.demos, job.seed)
    start = _Entrant(0, "the start", job.program)
    drawn, refused_draws = _draw(space, job)
    with ExitStack() as kept:
        # Candidates share what stands before the first slot that differs.
        for engine in distinct(job.engines):
            kept.enter_context(engine.keeping())
        finalist = _Race(job, journal, start, drawn).run()
    refusals = [
        Trial(len(drawn) + i, r.what, 0, (), 0.0, r.reason) for i, r in enumerate([*refused, *refused_draws], 1)
    ]
    trials = (start.trial, *(entrant.trial for entrant in drawn), *refusals)
    return _result(job, start, finalist, trials)


def _draw(space: Space, job: SearchJob) -> tuple[list[_Entrant], list[Refusal]]:
    """The first ``trials`` candidates that can be used, and those passed over."""
    entrants: list[_Entrant] = []
    refusals: list[Refusal] = []
    for candidate in islice(space.draw(job.seed), 4 * job.config.trials):
        made = space.build(candidate)
        if isinstance(made, Refusal):
            refusals.append(made)
        elif len(entrants) < job.config.trials:
            entrants.append(_Entrant(len(entrants) + 1, space.describe(candidate), made))
        if len(entrants) == job.config.trials:
            break
    return entrants, refusals


@dataclass
class _Race:
    """The rounds. The start takes part in all of them and is never dropped."""

    job: SearchJob
    journal: Journal
    start: _Entrant
    drawn: Sequence[_Entrant]
    done: int = 0

    def run(self) -> _Entrant | None:
        """Runs all rounds; the last entrant left, None when there was none."""
        alive = list(self.drawn)
        rounds = _rounds(len(alive), self.job.config.examples, len(self.job.dev))
        evaluations = sum(1 + count for count, _ in rounds)
        order = _dev_order(self.job)
        for number, (count, end) in enumerate(rounds, 1):
            alive = sorted(alive, key=lambda entrant: entrant.rank)[:count] if number > 1 else alive
            for entrant in (self.start, *sorted(alive, key=lambda entrant: entrant.number)):
                self._evaluate(entrant, number, order[len(entrant.scores) : end], evaluations)
        return min(alive, key=lambda entrant: entrant.rank, default=None)

    def _evaluate(self, entrant: _Entrant, number: int, examples: Sequence[Example], evaluations: int) -> None:
        """Scores an entrant on examples it has not met, or reads what that gave."""
        began = time.perf_counter()
        prompts = {name: template.sha256 for name, template in entrant.program.templates.items()}
        key = ["evaluate", entrant.number, prompts, number, [example.id for example in examples]]
        fresh = key not in self.journal
        record = self.journal.once(key, lambda: self._scores(entrant, examples))
        entrant.scores += record["scores"]
        entrant.tokens += record["tokens"]
        entrant.rounds = number
        self.done += 1
        if fresh:
            score, seconds = interval(entrant.scores), time.perf_counter() - began
            self.job.on_trial(TrialReport(self.done, evaluations, number, score, entrant.what, seconds))

    def _scores(self, entrant: _Entrant, examples: Sequence[Example]) -> dict[str, Any]:
        settings = RunSettings("prompts", 0, self.job.seed, 0.0)
        done = evaluate(entrant.program, self.job.engines, examples, settings)
        tokens = sum(call.completion.prompt_tokens for t in done.trajectories for call in t.calls)
        return {"what": entrant.what, "scores": done.scores, "tokens": tokens, "failures": done.failures}


def _rounds(candidates: int, examples: int, dev: int) -> list[tuple[int, int]]:
    """(candidates that take part, dev examples they have met by its end) of every round."""
    rounds = [(candidates, min(examples, dev))]
    while rounds[-1][0] > 1 and rounds[-1][1] < dev:
        count, end = rounds[-1]
        rounds.append((count // 2, min(2 * end, dev)))
    return rounds


def _dev_order(job: SearchJob) -> list[Example]:
    """The dev examples as every candidate meets them: an order of the seed's, whatever the file's own is."""
    return sorted(job.dev, key=lambda example: (seed_of(job.seed, "dev", example.id), example.id))


def _result(job: SearchJob, start: _Entrant, finalist: _Entrant | None, trials: tuple[Trial, ...]) -> SearchResult:
    verdict = judge(start.scores, (finalist or start).scores, sum(trial.rounds > 0 for trial in trials) - 1)
    best = finalist if finalist is not None and verdict.better else start
    return SearchResult(
        program=best.program,
        trials=trials,
        examples=tuple(example.id for example in _dev_order(job)[: len(start.scores)]),
        start_scores=tuple(start.scores),
        best_scores=tuple(best.scores),
        difference=verdict.difference,
        replaced=best is not start,
        note=_note(finalist, verdict, len(start.scores)),
    )


def _note(finalist: _Entrant | None, verdict: Verdict, examples: int) -> str:
    if finalist is None:
        return "the start is kept: nothing may be changed; give a module candidates, alternatives or a slot `demos`"
    gain = verdict.difference
    found = f"{finalist.what}: {gain.mean:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}] on {examples} dev examples"
    chance = f"p = {verdict.p:.2g}, {'within' if verdict.better else 'needed'} {verdict.level:.2g}"
    if verdict.better:
        return f"replaced the start with {found} ({chance})"
    if gain.mean <= 0:
        return f"the start is kept: the best candidate is no better ({found})"
    return f"the start is kept: noise explains the best candidate's gain ({found}; {chance})"
