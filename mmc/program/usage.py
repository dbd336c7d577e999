"""What LM calls cost: tokens and dollars, by module."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mmc.engine.base import Completion
from mmc.program.trajectory import Call, Trajectory, call_identity


@dataclass(frozen=True)
class Usage:
    """Sums over calls. ``dollars`` is what providers billed; None: the price of one of the calls is not known."""

    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    dollars: float | None = 0.0

    def __add__(self, other: Usage) -> Usage:
        unknown = self.dollars is None or other.dollars is None
        return Usage(
            self.calls + other.calls,
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            None if unknown else (self.dollars or 0.0) + (other.dollars or 0.0),
        )


ByModule = Mapping[str, Usage]


def usage_of_call(completion: Completion) -> Usage:
    """One call's. A local model bills nothing."""
    cost = completion.metadata.get("cost", 0.0)
    dollars = None if cost is None else float(cost)
    return Usage(1, completion.prompt_tokens, completion.completion_tokens, dollars)


def usage_by_module(runs: Sequence[Trajectory]) -> dict[str, Usage]:
    """Of all calls of ``runs``, judges' included. What runs of a tree did together counts once."""
    judged = (call for run in runs for call in run.judged)
    return added({call.module: usage_of_call(call.completion)} for call in (*_made(runs), *judged))


def _made(runs: Sequence[Trajectory]) -> Iterator[Call]:
    """The calls of runs, each once."""
    seen: set[tuple[object, ...]] = set()
    for run in runs:
        for call in run.calls:
            identity = call_identity(run, call)
            if not call.path or identity not in seen:
                yield call
            seen.add(identity)


def added(parts: Iterable[ByModule]) -> dict[str, Usage]:
    """The sums, module by module."""
    found: dict[str, Usage] = {}
    for part in parts:
        for module, usage in part.items():
            found[module] = found.get(module, Usage()) + usage
    return found


def plain_usage(usage: ByModule) -> dict[str, dict[str, Any]]:
    """As JSON data; :func:`usage_from` reads it."""
    return {module: asdict(one) for module, one in usage.items()}


def usage_from(data: Mapping[str, Any]) -> dict[str, Usage]:
    """From JSON data."""
    return {module: Usage(**one) for module, one in data.items()}
