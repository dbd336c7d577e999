"""What a search has spent, and whether its budget allows another piece of work."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mmc.engine.base import Completion
from mmc.errors import UsageError
from mmc.program.trajectory import Trajectory, all_calls
from mmc.program.usage import ByModule, added, plain_usage, usage_by_module, usage_from, usage_of_call
from mmc.spec.searches import Budget

Usage = Mapping[str, Any]
"""calls, tokens, dollars (None: a price is not known), and the same by module, as it stands in the journal."""
PROPOSER = "(proposer)"
"""Stands for a module where a model wrote texts."""


def usage_of(completions: Iterable[Completion]) -> dict[str, Any]:
    """What completions cost. A local model's cost nothing; a remote one's what its provider's price says."""
    calls = tokens = 0
    dollars: float | None = 0.0
    for one in completions:
        calls += 1
        tokens += one.prompt_tokens + one.completion_tokens
        cost = one.metadata.get("cost", 0.0)
        dollars = None if cost is None or dollars is None else dollars + float(cost)
    return {"calls": calls, "tokens": tokens, "dollars": dollars}


def usage_of_runs(runs: Sequence[Trajectory]) -> dict[str, Any]:
    """What runs cost, with their judges' calls."""
    completions = [call.completion for call in all_calls(runs)]
    return {**usage_of(completions), "modules": plain_usage(usage_by_module(runs))}


def usage_of_proposal(completion: Completion) -> dict[str, Any]:
    """What a proposer's answer cost."""
    return {**usage_of([completion]), "modules": plain_usage({PROPOSER: usage_of_call(completion)})}


@dataclass
class Ledger:
    """Sums of usage against a budget. Work read from the journal counts as it did when it was done."""

    budget: Budget
    calls: int = 0
    tokens: int = 0
    dollars: float | None = 0.0
    modules: ByModule | None = field(default_factory=dict)
    """Usage by module; None once something was read from a journal that does not tell."""
    began: float = field(default_factory=time.monotonic)

    def add(self, usage: Usage) -> None:
        """Counts a piece of work. Raises UsageError when dollars are limited and a price is not known."""
        self.calls += usage["calls"]
        self.tokens += usage["tokens"]
        known = usage["modules"] if "modules" in usage else None if usage["calls"] else {}
        self.modules = None if self.modules is None or known is None else added([self.modules, usage_from(known)])
        cost = usage["dollars"]
        self.dollars = None if cost is None or self.dollars is None else self.dollars + cost
        if self.dollars is None and self.budget.dollars is not None:
            raise UsageError(
                "compile.prompts.budget.dollars: the price of a model is not known; limit `calls` or `tokens` instead"
            )

    @property
    def spent(self) -> str:
        """Which limit is reached, in words; empty while none is."""
        budget, minutes = self.budget, (time.monotonic() - self.began) / 60
        if budget.calls is not None and self.calls >= budget.calls:
            return f"{self.calls:,} of {budget.calls:,} calls"
        if budget.tokens is not None and self.tokens >= budget.tokens:
            return f"{self.tokens:,} of {budget.tokens:,} tokens"
        if budget.dollars is not None and self.dollars is not None and self.dollars >= budget.dollars:
            return f"${self.dollars:.2f} of ${budget.dollars:.2f}"
        if budget.minutes is not None and minutes >= budget.minutes:
            return f"{minutes:.1f} of {budget.minutes:g} minutes"
        return ""
