"""How many calls a run makes at least and at most, module by module, as far as the steps tell."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

from mmc.spec import model

_RANGE = re.compile(r"^\{\{\s*range\((\d+)\)\s*\}\}$")


@dataclass(frozen=True)
class Calls:
    """Calls of each module in one run: fewest and most; inf where only ``program.max_calls`` bounds them."""

    low: Counter[str]
    high: dict[str, float]
    returns: bool = False
    """Whether the run may end within these steps."""


def calls_of(spec: model.Spec) -> Calls:
    """The bounds of a whole run; no module makes more calls than ``program.max_calls``."""
    found = _steps(spec.program.steps)
    most = float(spec.program.max_calls)
    return Calls(found.low, {name: min(count, most) for name, count in found.high.items()}, found.returns)


def total(spec: model.Spec) -> tuple[int, int]:
    """Fewest and most calls of a run, all modules together."""
    found = calls_of(spec)
    return sum(found.low.values()), int(min(sum(found.high.values()), spec.program.max_calls))


def _steps(steps: Sequence[model.Step]) -> Calls:
    low, high, returns = Counter[str](), dict[str, float](), False
    for step in steps:
        found = _step(step)
        if not returns:  # what comes after a possible end need not happen
            low += found.low
        high = _sum(high, found.high)
        returns |= found.returns
    return Calls(low, high, returns)


def _step(step: model.Step) -> Calls:
    match step:
        case model.CallStep():
            return Calls(Counter([step.call]), {step.call: 1.0})
        case model.IfStep():
            then, other = _steps(step.steps), _steps(step.else_)
            high = {
                name: max(then.high.get(name, 0.0), other.high.get(name, 0.0)) for name in {*then.high, *other.high}
            }
            return Calls(then.low & other.low, high, then.returns or other.returns)
        case model.RepeatStep():
            body = _steps(step.steps)
            turns = step.repeat if step.until is None and not body.returns else 1
            return Calls(_times(body.low, turns), {n: c * step.repeat for n, c in body.high.items()}, body.returns)
        case model.ForStep():
            body = _steps(step.steps)
            known = _RANGE.match(next(iter(step.for_.values())))
            fewest = int(known[1]) if known else 0
            turns = fewest if not body.returns else min(1, fewest)
            return Calls(
                _times(body.low, turns),
                {n: c * (int(known[1]) if known else inf) for n, c in body.high.items()},
                body.returns,
            )
        case model.ParallelStep():
            branches = [_steps(branch) for branch in step.parallel]
            low, high = Counter[str](), dict[str, float]()
            for branch in branches:
                low += branch.low
                high = _sum(high, branch.high)
            return Calls(low, high, any(branch.returns for branch in branches))
        case model.ReturnStep():
            return Calls(Counter(), {}, True)
    return Calls(Counter(), {})


def _times(counts: Counter[str], turns: int) -> Counter[str]:
    return Counter({name: count * turns for name, count in counts.items() if turns})


def _sum(a: dict[str, float], b: dict[str, float]) -> dict[str, float]:
    return {name: a.get(name, 0.0) + b.get(name, 0.0) for name in {**a, **b}}
