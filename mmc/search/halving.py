"""Successive halving over instructions, templates and demonstrations; needs no model to propose anything.

1. Run the start on training examples to find demonstrations.
2. Draw ``trials`` candidates from the cross product of what may stand in each slot.
3. Score them and the start, greedily, on the same dev examples; keep the better half; go on with twice as many
   examples, until one is left, which is scored on twice as many again, or dev is used up.
4. The last one replaces the start only if its gain is more than noise explains (:mod:`mmc.search.verdict`).
"""

from __future__ import annotations

from collections.abc import Sequence

from mmc.search.base import SearchJob, SearchResult, kept_beginnings
from mmc.search.demos import find_demos
from mmc.search.journal import Journal, identity_of
from mmc.search.ledger import Ledger
from mmc.search.space import make_space
from mmc.search.trials import Entrant, Trials, draw_entrants
from mmc.spec.searches import HalvingSearch


def halving(job: SearchJob) -> SearchResult:
    """Runs or resumes a search by successive halving. See :class:`mmc.search.base.Strategy`."""
    config = job.config
    assert isinstance(config, HalvingSearch)
    journal, ledger = Journal(job.folder / "journal.jsonl", identity_of(job)), Ledger(config.budget)
    trials = Trials(job, journal, ledger)
    found = find_demos(job, journal, ledger)
    space, refused = make_space(job.program, found, config.demos, job.seed, knobs=config.knobs)
    drawn, refused_draws = draw_entrants(space, config.trials, job.seed)
    start = Entrant(0, "the start", job.program)
    with kept_beginnings(job.engines):
        finalist = _race(trials, start, drawn, config.examples)
    return trials.conclude(start, finalist, drawn, [*refused, *refused_draws])


def _race(trials: Trials, start: Entrant, drawn: Sequence[Entrant], examples: int) -> Entrant | None:
    """The last entrant left, None when there was none. The start takes part in all rounds and is never dropped."""
    alive = list(drawn)
    plan = rounds(len(alive), examples, len(trials.order))
    trials.total = sum(1 + count for count, _ in plan)
    for number, (count, end) in enumerate(plan, 1):
        alive = sorted(alive, key=lambda entrant: entrant.rank)[:count] if number > 1 else alive
        for entrant in (start, *sorted(alive, key=lambda entrant: entrant.number)):
            if not trials.score(entrant, range(end), number):
                # Who was not reached in this round is compared on what all have met.
                alive = [entrant for entrant in alive if entrant.scores]
                return min(alive, key=lambda entrant: _on_first(entrant, alive), default=None)
    return min(alive, key=lambda entrant: entrant.rank, default=None)


def _on_first(entrant: Entrant, others: Sequence[Entrant]) -> tuple[float, float, int]:
    """Its rank on the examples that all have met."""
    met = set.intersection(*(set(other.scores) for other in others))
    return -sum(entrant.scores[i] for i in met), entrant.cost, entrant.number


def rounds(candidates: int, examples: int, dev: int) -> list[tuple[int, int]]:
    """(candidates that take part, dev examples they have met by its end) of every round."""
    found = [(candidates, min(examples, dev))]
    while found[-1][0] > 1 and found[-1][1] < dev:
        count, end = found[-1]
        found.append((count // 2, min(2 * end, dev)))
    return found
