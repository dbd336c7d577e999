"""The score of a finished run, its LM judges asked."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from mmc.engine.base import Engine, distinct, seed_of
from mmc.errors import EnvironmentProblem, RunFailure, UsageError
from mmc.metric import Score
from mmc.program.call import complete, make_request, typed_inputs
from mmc.program.graph import Program
from mmc.program.node import EXAMPLE, JudgeNode
from mmc.program.trajectory import Call
from mmc.spec.marks import KeyPath

Values = Mapping[str, Any]


async def scored(
    program: Program, engines: Mapping[str, Engine], outputs: Values, row: Values
) -> tuple[Score, tuple[Call, ...]]:
    """The score of ``outputs`` for one row of data, and the calls of the judges. The program has a metric.

    Raises what the metric raises, and RunFailure when a judge gives no verdict.
    """
    assert program.metric is not None
    verdicts: dict[KeyPath, float] = {}
    calls = []
    with ExitStack() as clients:
        if program.judges:
            for engine in distinct(engines):
                clients.enter_context(engine.client())
        for judge in program.judges:
            call = await _asked(program, engines, judge, {**row, **outputs, EXAMPLE: row})
            verdicts[judge.path] = _verdict(judge, (call.outputs or {})[judge.output])
            calls.append(call)
    return program.metric(outputs, row, verdicts), tuple(calls)


async def _asked(program: Program, engines: Mapping[str, Engine], judge: JudgeNode, variables: Values) -> Call:
    """One greedy call of a judge. Its key is its question, so that equal questions can share an answer."""
    module, reader = program.spec.modules[judge.module], program.readers[judge.module]
    inputs = typed_inputs(module, judge.module, {name: value(variables) for name, value in judge.inputs.items()})
    key = ("judge", judge.module, seed_of(inputs))
    request, options = make_request(program, judge.module, inputs, key, temperature=0.0, seed=0)
    completion = await complete(engines, module.model, request)
    outputs = reader.parse(completion.text, options)
    return Call(judge.module, 0, inputs, request.messages, completion, outputs)


def _verdict(judge: JudgeNode, value: Any) -> float:
    try:
        found = float(value) / judge.out_of
    except (TypeError, ValueError):
        found = -1.0
    if not 0 <= found <= 1:
        raise RunFailure(f"the judge {judge.module} said {value!r}, not a number from 0 to {judge.out_of:g}")
    return found


def score_again(
    program: Program, engines: Mapping[str, Engine], pairs: Sequence[tuple[Values, Values]]
) -> list[float | None]:
    """Scores of (outputs, row of data) pairs; None where the metric cannot say."""

    async def one(outputs: Values, row: Values) -> float | None:
        try:
            return (await scored(program, engines, outputs, row))[0].value
        except (EnvironmentProblem, UsageError):
            raise
        except Exception:  # a metric that cannot score such outputs says nothing about them
            return None

    async def everything() -> list[float | None]:
        return list(await asyncio.gather(*(one(outputs, row) for outputs, row in pairs)))

    return asyncio.run(everything())
