"""Demonstrations alone: random sets of the program's own successful calls, for every module at once; the best one wins."""

from __future__ import annotations

from mmc.search.base import SearchJob, SearchResult, kept_beginnings
from mmc.search.demos import find_demos
from mmc.search.journal import Journal, identity_of
from mmc.search.ledger import Ledger
from mmc.search.space import make_space
from mmc.search.trials import Entrant, Trials, draw_entrants
from mmc.spec.searches import BootstrapSearch


def bootstrap(job: SearchJob) -> SearchResult:
    """Runs or resumes the search. See :class:`mmc.search.base.Strategy`."""
    config = job.config
    assert isinstance(config, BootstrapSearch)
    journal, ledger = Journal(job.folder / "journal.jsonl", identity_of(job)), Ledger(config.budget)
    trials = Trials(job, journal, ledger)
    found = find_demos(job, journal, ledger)
    space, refused = make_space(job.program, found, config.demos, job.seed, demos_alone=True)
    drawn, refused_draws = draw_entrants(space, config.trials, job.seed)
    start = Entrant(0, "the start", job.program)
    trials.total = 1 + len(drawn)
    indexes = range(min(config.examples, len(trials.order)))
    scored = []
    with kept_beginnings(job.engines):
        for entrant in (start, *drawn):
            if not trials.score(entrant, indexes, 1):
                break
            scored.append(entrant)
    finalist = min(scored[1:], key=lambda entrant: entrant.rank, default=None)
    return trials.conclude(start, finalist, drawn, [*refused, *refused_draws])
