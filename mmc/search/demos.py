"""Demonstrations for a module's ``demos`` slot, all from training examples.

Bootstrapped: the calls of runs of the start program that scored well, as they were, for every module at once.
Labelled: where a program output that the metric compares is a module's single output and nothing else, the inputs the
module met in a run, with the gold value as its answer.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any, Literal

from mmc.data import Example
from mmc.engine.base import seed_of
from mmc.errors import ParseError, RunFailure
from mmc.metric import interval
from mmc.program.graph import Program
from mmc.program.node import CallNode, ForNode, IfNode, Node, ParallelNode, RepeatNode
from mmc.program.run import RunSettings, run_all
from mmc.program.trajectory import Trajectory
from mmc.prompt import DEMOS
from mmc.search.base import SearchJob, TrialReport, all_templates
from mmc.search.journal import Journal
from mmc.search.ledger import Ledger, usage_of_runs
from mmc.spec.metrics import ExactMetric, F1Metric, Metric, RecallMetric, WeightedMetric

TEMPERATURE = 0.7
"""Of the second run of the training examples that the greedy run did not solve."""
_VARIABLE = re.compile(r"\s*\{\{\s*(\w+)\.(\w+)\s*\}\}\s*")


@dataclass(frozen=True)
class Demo:
    """One finished call to show: what the module was given and what it is to answer."""

    module: str
    kind: Literal["bootstrapped", "labelled"]
    example: str
    inputs: Mapping[str, Any]
    answer: str


@dataclass(frozen=True)
class Found:
    """All demonstrations, and for every module that was reached the inputs of one call, to try its templates on."""

    demos: tuple[Demo, ...]
    samples: Mapping[str, Mapping[str, Any]]


def find_demos(job: SearchJob, journal: Journal, ledger: Ledger) -> Found:
    """Runs the start program on training examples, or reads from the journal what that gave."""
    began, fresh = time.perf_counter(), ["demos"] not in journal
    record = journal.once(["demos"], lambda: _find(job))
    ledger.add(record["usage"])
    if fresh and record["rewards"]:
        what = f"the start on training examples; demonstrations found: {len(record['demos'])}"
        job.on_trial(TrialReport(0, 0, 0, interval(record["rewards"]), what, time.perf_counter() - began))
    return Found(tuple(Demo(**demo) for demo in record["demos"]), record["samples"])


def _find(job: SearchJob) -> dict[str, Any]:
    config, program = job.config, job.program
    wanted = config.demos and config.bootstrap and any(DEMOS in t.slots for t in all_templates(program).values())
    # One run even when no demonstrations are wanted: its calls are what candidate templates are tried on.
    examples = _examples(job, config.bootstrap if wanted else 1)
    runs = run_all(program, job.engines, examples, RunSettings("demos", 0, job.seed, 0.0))
    again: list[Trajectory] = []
    demos: list[Demo] = []
    if wanted:
        unsolved = [e for e, t in zip(examples, runs, strict=True) if t.reward < 1.0]
        again = run_all(program, job.engines, unsolved, RunSettings("demos", 1, job.seed, TEMPERATURE))
        rows = {example.id: example.row for example in examples}
        demos = [*labelled(program, runs, rows), *bootstrapped(program, [*runs, *again], config.demos)]
    samples = {call.module: _plain(call.inputs) for t in reversed(runs) for call in t.calls}
    return {
        "rewards": [t.reward for t in runs] if wanted else [],
        "demos": [asdict(demo) for demo in demos],
        "usage": usage_of_runs([*runs, *again]),
        "samples": {module: inputs for module, inputs in samples.items() if inputs is not None},
    }


def showable(job: SearchJob) -> list[Example]:
    """The training examples that may be shown to a model: none with the inputs of a held-out one."""
    held_out = {_inputs(job.program, example) for example in (*job.dev, *job.held_out)}
    return [example for example in job.train if _inputs(job.program, example) not in held_out]


def _examples(job: SearchJob, count: int) -> list[Example]:
    """``count`` of them in an order of their own."""
    return sorted(showable(job), key=lambda e: (seed_of(job.seed, "demos", e.id), e.id))[:count]


def _inputs(program: Program, example: Example) -> str:
    """What the program is given for an example."""
    inputs = {name: example.row.get(name) for name in program.spec.program.inputs}
    return json.dumps(inputs, sort_keys=True, default=str)


def bootstrapped(program: Program, runs: Sequence[Trajectory], most: int) -> list[Demo]:
    """The calls of runs with reward 1; where these are fewer than ``2 * most``, of the next best above average too."""
    average = fmean(t.reward for t in runs) if runs else 0.0
    ranked = sorted((t for t in runs if t.ending == "done"), key=lambda t: -t.reward)
    chosen = [t for i, t in enumerate(ranked) if t.reward >= 1.0 or (i < 2 * most and t.reward > average)]
    demos = []
    for trajectory in chosen:
        for call in trajectory.calls:
            inputs, outputs = _plain(call.inputs), _plain(call.outputs)
            if inputs is not None and outputs is not None:
                answer = program.readers[call.module].answer(outputs)
                demos.append(Demo(call.module, "bootstrapped", trajectory.example_id, inputs, answer))
    return [demo for demo in demos if demo.answer.strip()]


def labelled(program: Program, runs: Sequence[Trajectory], rows: Mapping[str, Mapping[str, Any]]) -> list[Demo]:
    """One demonstration a run with the gold value as the answer, for each module whose answer the metric compares."""
    demos = []
    for module, gold in _compared(program).items():
        for trajectory in runs:
            calls = [call for call in trajectory.calls if call.module == module]
            inputs = _plain(calls[0].inputs) if len(calls) == 1 else None
            if inputs is not None:
                answer = _gold_answer(program, module, inputs, rows[trajectory.example_id].get(gold))
                demos.append(Demo(module, "labelled", trajectory.example_id, inputs, answer))
    return [demo for demo in demos if demo.answer.strip()]


def _gold_answer(program: Program, module: str, inputs: Mapping[str, Any], gold: Any) -> str:
    """The completion that gives the gold value; empty when it is not something the module can answer."""
    reader = program.readers[module]
    name, declared = next(iter(reader.module.outputs.items()))
    if gold is None or (not isinstance(gold, str | int | float) and (declared == "str" or reader.format == "text")):
        return ""
    try:
        return reader.answer(reader.parse(reader.answer({name: gold}), reader.options(inputs)))
    except (ParseError, RunFailure):
        return ""


def _compared(program: Program) -> dict[str, str]:
    """Module -> gold column, where the metric compares that column with the module's single output."""
    setters = {node.name: node.module for node in _calls(program.nodes)}
    names = [node.name for node in _calls(program.nodes)]
    found = {}
    for predicted, gold in _pairs(program.spec.metric):
        match = _VARIABLE.fullmatch(str(program.spec.program.outputs.get(predicted, "")))
        if match and names.count(match[1]) == 1:
            module = setters[match[1]]
            if list(program.spec.modules[module].outputs) == [match[2]]:
                found[module] = gold
    return found


def _pairs(metric: Metric | None) -> Iterator[tuple[str, str]]:
    """(program output, gold column) of every comparison in a metric."""
    match metric:
        case ExactMetric() | F1Metric() | RecallMetric():
            yield metric.predicted, metric.gold
        case WeightedMetric():
            for part in metric.of:
                if part.weight > 0:
                    yield from _pairs(part.metric)


def _calls(nodes: Iterable[Node]) -> Iterator[CallNode]:
    for node in nodes:
        match node:
            case CallNode():
                yield node
            case IfNode():
                yield from _calls((*node.then, *node.otherwise))
            case RepeatNode() | ForNode():
                yield from _calls(node.body)
            case ParallelNode():
                for branch in node.branches:
                    yield from _calls(branch)


def _plain(value: Any) -> Any:
    """``value`` as JSON gives it back; None when it is not plain data and could not be shown the same way again."""
    try:
        return json.loads(json.dumps(value))
    except (TypeError, ValueError):
        return None


def demo_sets(demos: Sequence[Demo], most: int, count: int, seed: int) -> list[tuple[Demo, ...]]:
    """Up to ``count`` different sets of one module's demonstrations: full ones, half ones and single ones.

    The same ones in another order are another set. The demonstrations of a set have different inputs, and different
    answers as far as there are any.
    """
    half = (most + 1) // 2
    sizes = [most, most, half, most, 1, half] if most else []
    sets: dict[tuple[str, ...], tuple[Demo, ...]] = {}
    for i in range(count if sizes else 0):
        chosen = _diverse(demos, sizes[i % len(sizes)], seed_of(seed, "set", i))
        if chosen:
            sets.setdefault(tuple(_shown(demo) for demo in chosen), chosen)
    return list(sets.values())


def _diverse(demos: Sequence[Demo], size: int, seed: int) -> tuple[Demo, ...]:
    """``size`` demonstrations in an order that ``seed`` gives: first of answers not yet there, then of any."""
    order = sorted(demos, key=lambda demo: (seed_of(seed, _shown(demo)), demo.kind))
    chosen: list[Demo] = []
    for new_answers in (True, False):
        for demo in order:
            seen = demo.answer in {c.answer for c in chosen} if new_answers else False
            if len(chosen) < size and not seen and demo.inputs not in [c.inputs for c in chosen]:
                chosen.append(demo)
    return tuple(chosen)


def _shown(demo: Demo) -> str:
    return json.dumps([demo.inputs, demo.answer], sort_keys=True)
