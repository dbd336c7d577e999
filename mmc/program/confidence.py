"""What the log-probabilities of completions tell, for modules that ask for them (`logprobs: true`)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from mmc.engine.base import Completion
from mmc.program.trajectory import Call
from mmc.spec.model import Spec


@dataclass(frozen=True)
class Confidence:
    """Sums over the calls of one module. ``silent``: those whose completion came without log-probabilities."""

    calls: int = 0
    silent: int = 0
    tokens: int = 0
    logprob: float = 0.0

    def __add__(self, other: Confidence) -> Confidence:
        return Confidence(
            self.calls + other.calls,
            self.silent + other.silent,
            self.tokens + other.tokens,
            self.logprob + other.logprob,
        )

    @property
    def mean(self) -> float | None:
        """Mean log-probability of a token; None when none is known."""
        return self.logprob / self.tokens if self.tokens else None


def confidence_of(completion: Completion) -> Confidence:
    """One completion's."""
    known = len(completion.logprobs_T)
    return Confidence(1, int(not known), known, sum(completion.logprobs_T))


def confidence(spec: Spec, calls: Iterable[Call]) -> dict[str, Confidence]:
    """Of the modules that ask for log-probabilities, in the spec's order."""
    found = {name: Confidence() for name, module in spec.modules.items() if module.logprobs}
    for call in calls:
        if call.module in found:
            found[call.module] += confidence_of(call.completion)
    return {name: one for name, one in found.items() if one.calls}


def silent(spec: Spec, found: Mapping[str, Confidence]) -> Iterator[str]:
    """For each module whose model gave none, what to tell."""
    for name, one in found.items():
        if one.silent:
            model = spec.models[spec.modules[name].model]
            server = getattr(model, "model", spec.modules[name].model)
            yield (
                f"{name} asks for log-probabilities (`logprobs: true`), but {one.silent} of {one.calls} completions of {server} "
                "came without: its server gives none"
            )
