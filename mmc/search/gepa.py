"""Reflective evolution with a Pareto front over dev examples, by the library `gepa` (arXiv 2507.19457).

The library keeps the front, picks parents and training minibatches and decides what enters. Ours is everything at its edges:
a candidate is the text of every slot, runs and reflections go through the journal, proposals are checked as
:mod:`mmc.search.propose` says, and the candidate it ends with replaces the start only if its gain is more than noise explains.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from mmc.data import Example
from mmc.errors import UsageError, needing
from mmc.metric import interval
from mmc.program.graph import Program
from mmc.program.run import RunSettings, run_all
from mmc.program.trajectory import Trajectory
from mmc.prompt import escape
from mmc.search.base import SearchJob, SearchResult, TrialReport, kept_beginnings
from mmc.search.demos import find_demos, showable
from mmc.search.journal import Journal, identity_of
from mmc.search.ledger import Ledger, usage_of_runs
from mmc.search.propose import Proposer, Task, places
from mmc.search.space import Refusal
from mmc.search.trials import Entrant, Trials
from mmc.spec.searches import GepaSearch

Texts = dict[str, str]
"""``module.slot`` -> its text: what the library calls a candidate."""


def gepa(job: SearchJob) -> SearchResult:
    """Runs or resumes the search. See :class:`mmc.search.base.Strategy`."""
    config = job.config
    assert isinstance(config, GepaSearch)
    with needing("search", "`algorithm: gepa`"):
        import gepa as library
        from gepa.core.adapter import EvaluationBatch
    journal, ledger = Journal(job.folder / "journal.jsonl", identity_of(job)), Ledger(config.budget)
    trials = Trials(job, journal, ledger)
    start = Entrant(0, "the start", job.program)
    if not places(job.program):
        return trials.conclude(start, None, [], [], "no template has a slot with plain text to rewrite")
    if not showable(job):
        raise UsageError("prompts: there are no training examples to reflect on that are not in dev or test too")
    # Inputs of real calls, on which proposed texts are tried.
    samples = find_demos(job, journal, ledger).samples
    evolution = _Evolution(trials, Proposer(job, journal, ledger, config.proposer, samples), EvaluationBatch)
    dev = trials.order[: config.examples]
    with kept_beginnings(job.engines):
        found = library.optimize(
            seed_candidate=evolution.start,
            trainset=showable(job),
            valset=dev,
            adapter=evolution,
            reflection_minibatch_size=config.minibatch,
            max_metric_calls=config.runs,
            stop_callbacks=lambda state: bool(ledger.spent) or evolution.failure is not None,
            use_merge=config.merge,
            skip_perfect_score=True,
            logger=_Quiet(),
            seed=job.seed % 2**31,
            raise_on_exception=True,
        )
    if evolution.failure is not None:
        raise evolution.failure
    entrants = [evolution.entrant(i, texts, dev) for i, texts in enumerate(found.candidates)]
    start, others = entrants[0], entrants[1:]
    whole = [entrant for entrant in others if entrant.scores.keys() >= start.scores.keys()]
    finalist = min(whole, key=lambda entrant: entrant.rank, default=None)
    note = "" if others else "no rewritten text did better on the training examples it was written for"
    return trials.conclude(start, finalist, others, evolution.refusals, note)


class _Evolution:
    """The library's adapter: runs programs on candidates, shows what happened, writes new texts."""

    def __init__(self, trials: Trials, proposer: Proposer, batch: Any) -> None:
        self.trials, self.proposer, self._batch = trials, proposer, batch
        self.places = {f"{place.module}.{place.slot}": place for place in places(trials.job.program)}
        self.start: Texts = {f"{p.module}.{p.slot}": text for p, text in places(trials.job.program).items()}
        self.scores: dict[tuple[str, str], float] = {}
        """(candidate, example) -> score."""
        self.tokens: dict[str, list[int]] = {}
        """Candidate -> prompt tokens of its runs."""
        self.refusals: list[Refusal] = []
        self.failure: Exception | None = None
        """What went wrong in a run or while texts were written."""
        self._reflections = 0

    # --- what the library calls ---

    def evaluate(self, batch: list[Example], candidate: Texts, capture_traces: bool = False) -> Any:
        """Greedy runs of a candidate on examples."""
        with self._noted():
            return self._evaluated(batch, candidate, capture_traces)

    def _evaluated(self, batch: list[Example], candidate: Texts, capture_traces: bool) -> Any:
        job, name = self.trials.job, _name(candidate)
        key = ["run", name, [example.id for example in batch], _rows(batch)]
        new = key not in self.trials.journal
        record = self.trials.journal.once(key, lambda: self._run(batch, candidate))
        self.trials.ledger.add(record["usage"])
        for example, score in zip(batch, record["scores"], strict=True):
            self.scores[name, _rows([example])] = score
        self.tokens.setdefault(name, []).extend(record["tokens"])
        if new:
            self.trials.done += len(batch)
            total = max(self.trials.done, job.config.runs if isinstance(job.config, GepaSearch) else 0)
            what = self._what(candidate)
            job.on_trial(TrialReport(self.trials.done, total, 1, interval(record["scores"]), what, 0.0))
        cases = record["cases"] if capture_traces else None
        return self._batch(outputs=record["outputs"], scores=list(record["scores"]), trajectories=cases)

    def make_reflective_dataset(
        self, candidate: Texts, eval_batch: Any, components_to_update: list[str]
    ) -> Mapping[str, Sequence[Mapping[str, Any]]]:
        """For each slot, what its module was asked and answered in each run, and how the run scored."""
        return {
            component: [
                {"text": text}
                for case in eval_batch.trajectories
                for text in case["calls"].get(self.places[component].module, [])[:1]
            ]
            for component in components_to_update
        }

    def propose_new_texts(
        self,
        candidate: Texts,
        reflective_dataset: Mapping[str, Sequence[Mapping[str, Any]]],
        components_to_update: list[str],
    ) -> Texts:
        """New texts for some slots; the old one where none could be used."""
        with self._noted():
            return self._proposed(candidate, reflective_dataset, components_to_update)

    @contextmanager
    def _noted(self) -> Iterator[None]:
        """Keeps what goes wrong inside: the library would go on without a word."""
        try:
            yield
        except Exception as error:
            self.failure = error
            raise

    def _proposed(
        self, candidate: Texts, cases: Mapping[str, Sequence[Mapping[str, Any]]], components: Sequence[str]
    ) -> Texts:
        program = self._program(candidate)
        self._reflections += 1
        tasks = [
            Task(
                program,
                self.places[component],
                (component, self._reflections),
                [str(case["text"]) for case in cases[component]],
            )
            for component in components
        ]
        written = {}
        for component, made in zip(components, self.proposer.propose(tasks), strict=True):
            self.refusals += [Refusal(f"{component}, a proposal", reason) for reason in made.refused]
            written[component] = candidate[component] if made.text is None else made.text
        return written

    # --- ours ---

    def _run(self, batch: Sequence[Example], candidate: Texts) -> dict[str, Any]:
        job, program = self.trials.job, self._program(candidate)
        runs = run_all(program, job.engines, batch, RunSettings("prompts", 0, job.seed, 0.0))
        return {
            "scores": [run.reward for run in runs],
            "outputs": [json.loads(json.dumps(run.outputs, default=str)) for run in runs],
            "tokens": [sum(call.completion.prompt_tokens for call in run.calls) for run in runs],
            "usage": usage_of_runs(runs),
            "cases": [{"calls": _told(run, example)} for run, example in zip(runs, batch, strict=True)],
        }

    def _program(self, candidate: Texts) -> Program:
        templates = dict(self.trials.job.program.templates)
        for component, text in candidate.items():
            place = self.places[component]
            if text != self.start[component]:
                templates[place.module] = templates[place.module].with_slot(place.slot, escape(text))
        return self.trials.job.program.with_templates(templates)

    def _what(self, candidate: Texts) -> str:
        changed = [component for component, text in candidate.items() if text != self.start[component]]
        return f"{', '.join(changed)} rewritten" if changed else "the start"

    def entrant(self, number: int, candidate: Texts, dev: Sequence[Example]) -> Entrant:
        """A candidate of the library with its scores on dev."""
        name = _name(candidate)
        known = {i: self.scores[name, _rows([e])] for i, e in enumerate(dev) if (name, _rows([e])) in self.scores}
        tokens = self.tokens.get(name, [])
        mean = sum(tokens) / len(tokens) if tokens else 0.0
        made = self._program(candidate)
        return Entrant(number, self._what(candidate), made, known, round(mean * len(known)), 1)


class _Quiet:
    """The library's log goes nowhere; ours is the journal and the progress bar."""

    def log(self, message: str) -> None:
        pass


def _name(candidate: Texts) -> str:
    return hashlib.sha256(json.dumps(candidate, sort_keys=True).encode()).hexdigest()[:16]


def _rows(examples: Sequence[Example]) -> str:
    """Tells examples of train and dev apart, whose ids may be the same."""
    text = json.dumps([example.row for example in examples], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _told(run: Trajectory, example: Example) -> dict[str, list[str]]:
    """Module -> its calls in words: inputs, answer, and how the run scored."""
    verdict = f"The run scored {run.reward:.2f} of 1."
    if run.scores:
        verdict += " " + ", ".join(f"{name}: {value:.2f}" for name, value in run.scores.items()) + "."
    if run.error:
        verdict += f" It ended early: {run.error}"
    extra = {k: v for k, v in example.row.items() if run.outputs is None or k not in run.outputs}
    told: dict[str, list[str]] = {}
    for call in run.calls:
        lines = [f"{name}: {_short(value)}" for name, value in call.inputs.items()]
        lines += [f"Answer: {_short(call.completion.text)}", f"Outputs of the run: {_short(run.outputs)}"]
        lines += [f"The data say: {_short(extra)}", verdict]
        told.setdefault(call.module, []).append("\n".join(lines))
    return told


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 300 else text[:297] + "..."
