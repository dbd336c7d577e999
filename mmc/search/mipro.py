"""Proposed instructions and bootstrapped demonstrations, chosen together (after MIPROv2, arXiv 2406.11695).

1. Run the start on training examples to find demonstrations.
2. A proposer writes texts for the slots; it sees the program, the prompt and finished calls.
3. A tree-structured Parzen estimator picks a template, a text for each slot and a set of demonstrations for every module. What it
   maximizes is the mean gain over the start on a minibatch of dev, so an easy minibatch favours nobody.
4. Now and then, and at the end, the candidate with the best gain is scored on all of the search's dev examples; the best of
   these replaces the start only if its gain is more than noise explains.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from mmc.engine.base import seed_of
from mmc.errors import needing
from mmc.search.base import SearchJob, SearchResult, kept_beginnings
from mmc.search.demos import Found, find_demos
from mmc.search.journal import Journal, identity_of
from mmc.search.ledger import Ledger
from mmc.search.propose import Place, Proposer, Task, places
from mmc.search.space import Candidate, Refusal, Space, make_space
from mmc.search.trials import Entrant, Trials
from mmc.spec.searches import MiproSearch

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import Trial as Draw

TIPS = (
    "",
    "Be as brief as you can.",
    "Say step by step how to come to a good answer.",
    "Say exactly what an answer looks like, and what it must not hold.",
    "Warn of the mistake that is made most easily here.",
)
"""Put under the question in turn, so that proposals differ."""
CASES = 3
"""Finished calls that a proposer is shown."""


def mipro(job: SearchJob) -> SearchResult:
    """Runs or resumes the search. See :class:`mmc.search.base.Strategy`."""
    config = job.config
    assert isinstance(config, MiproSearch)
    journal, ledger = Journal(job.folder / "journal.jsonl", identity_of(job)), Ledger(config.budget)
    trials = Trials(job, journal, ledger)
    found = find_demos(job, journal, ledger)
    proposed, refused_texts, note = _proposals(job, journal, ledger, found, config)
    space, refused = make_space(job.program, found, config.demos, job.seed, proposed, knobs=config.knobs)
    with kept_beginnings(job.engines):
        hunt = _Hunt(trials, space, config)
        finalist = hunt.run()
    refusals = [*refused_texts, *refused, *hunt.refusals]
    return trials.conclude(hunt.start, finalist, list(hunt.entrants.values()), refusals, note)


def _proposals(
    job: SearchJob, journal: Journal, ledger: Ledger, found: Found, config: MiproSearch
) -> tuple[dict[tuple[str, str], list[str]], list[Refusal], str]:
    """Texts for slots, those refused, and what the user should know of it."""
    if config.proposer is None:
        return {}, [], "no instruction was proposed: compile.prompts names no `proposer`" if config.proposals else ""
    proposer = Proposer(job, journal, ledger, config.proposer, found.samples)
    tasks = [
        Task(job.program, place, (place.module, place.slot, number), _cases(found, place), TIPS[number % len(TIPS)])
        for place in places(job.program)
        for number in range(config.proposals)
    ]
    job.say(f"{config.proposer} is writing {len(tasks)} texts")
    texts: dict[tuple[str, str], list[str]] = {}
    refusals = []
    for task, made in zip(tasks, proposer.propose(tasks), strict=True):
        where = task.place
        refusals += [Refusal(f"{where.module}: {where.slot}, a proposal", reason) for reason in made.refused]
        if made.text is not None and made.text not in texts.setdefault(where, []):
            texts[where].append(made.text)
    job.say(f"{sum(map(len, texts.values()))} of them can be used")
    poor = [f"{p.module}.{p.slot}" for p in places(job.program) if not texts.get((p.module, p.slot))]
    note = f"the proposer {config.proposer} wrote nothing that can be used for {', '.join(poor)}" if poor else ""
    return texts, refusals, note


def _cases(found: Found, place: Place) -> list[str]:
    """Finished calls of the module, as a proposer is shown them."""
    mine = [demo for demo in found.demos if demo.module == place.module][:CASES]
    return [
        "\n".join([*(f"{k}: {v}" for k, v in demo.inputs.items()), f"A good answer: {demo.answer}"]) for demo in mine
    ]


class _Hunt:
    """The trials of one study. Optuna's sampler sees nothing but choices and gains, so a resumed one draws the same."""

    def __init__(self, trials: Trials, space: Space, config: MiproSearch) -> None:
        self.trials, self.space, self.config = trials, space, config
        self.start = Entrant(0, "the start", trials.job.program)
        self.entrants: dict[Candidate, Entrant] = {}
        self.refusals: list[Refusal] = []
        self.full = range(min(config.examples, len(trials.order)))
        trials.total = 1 + config.trials + -(-config.trials // config.full_every)

    def run(self) -> Entrant | None:
        """The candidate with the best full evaluation; None when there was none."""
        if self.space.size < 2 or not self.trials.score(self.start, self.full, 0):
            return None
        study, leaders = _study(self.trials.job.seed), list[Entrant]()
        for number in range(1, self.config.trials + 1):
            if not self._try(study, number):
                break
            if number % self.config.full_every == 0 or number == self.config.trials:
                leader = self._leader(leaders)
                if leader is not None and self.trials.score(leader, self.full, number):
                    leaders.append(leader)
        return min(leaders, key=lambda entrant: entrant.rank, default=None)

    def _try(self, study: Study, number: int) -> bool:
        """One draw on one minibatch; False when the budget is spent."""
        draw = study.ask()
        candidate = self.space.candidate(partial(_suggested, draw))
        if candidate == self.space.start:
            study.tell(draw, 0.0)
            return True
        entrant = self.entrants.get(candidate)
        if entrant is None:
            made = self.space.build(candidate)
            if isinstance(made, Refusal):
                self.refusals.append(made)
                study.tell(draw, -1.0)
                return True
            entrant = Entrant(len(self.entrants) + 1, self.space.describe(candidate), made)
        chosen = random.Random(seed_of(self.trials.job.seed, "minibatch", number))
        batch = sorted(chosen.sample(self.full, min(self.config.minibatch, len(self.full))))
        if not self.trials.score(entrant, batch, number):
            return False
        self.entrants[candidate] = entrant
        study.tell(draw, self.trials.gain(self.start, entrant, batch))
        return True

    def _leader(self, leaders: Sequence[Entrant]) -> Entrant | None:
        """Of those not fully scored, the one with the best gain on all it has met."""
        done = {entrant.number for entrant in leaders}
        waiting = [entrant for entrant in self.entrants.values() if entrant.number not in done]
        return max(waiting, key=lambda e: (self.trials.gain(self.start, e, list(e.scores)), -e.number), default=None)


def _suggested(draw: Draw, count: int, *place: str | int) -> int:
    return int(draw.suggest_categorical(".".join(map(str, place)), list(range(count))))


def _study(seed: int) -> Study:
    """A study in memory. Raises EnvironmentProblem without optuna."""
    with needing("search", "`algorithm: mipro`"):
        import optuna
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed % 2**31))
