"""The block ``compile.prompts``: how prompts are searched, one model a strategy."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from mmc.spec.keys import Keys


class Budget(Keys):
    """Where a search stops trying and judges what it has. What is left out has no limit."""

    calls: int | None = Field(None, gt=0)
    """LM calls, the proposer's included."""
    tokens: int | None = Field(None, gt=0)
    """Tokens of prompts and completions."""
    dollars: float | None = Field(None, gt=0)
    """By the prices LiteLLM knows; local models cost nothing."""
    minutes: float | None = Field(None, gt=0)
    """Of one run of the command; a resumed search begins to count anew. A clock decides, so the same seed need not find the
    same."""


class Search(Keys):
    """What every search has. Demonstrations come from training examples, choices are made on dev."""

    demos: int = Field(4, ge=0)
    """Most demonstrations put into one `demos` slot."""
    bootstrap: int = Field(64, ge=0)
    """Training examples that the start program runs on to find demonstrations in successful trajectories."""
    budget: Budget = Budget()
    """Where the search stops trying and judges what it has."""


class Choosing(Search):
    """A search over choices that are known beforehand or proposed once."""

    knobs: dict[str, list[Any]] = {}
    """Other values for keys of this spec, searched together with the prompts: `{tools.search.k: [5, 20]}`. Keys of `tools` and of
    `program`, and a module's `max_tokens` and `model`, may be knobs."""


class HalvingSearch(Choosing):
    """Successive halving over the cross product of instructions, alternatives and demonstration sets; no proposer needed."""

    algorithm: Literal["halving"] = "halving"
    trials: int = Field(12, gt=0)
    """Candidate programs drawn from the cross product, besides the start."""
    examples: int = Field(32, gt=0)
    """Dev examples that every candidate meets in the first round; each later round has twice as many and half the candidates."""


class BootstrapSearch(Search):
    """Demonstrations alone, from the program's own successful runs, for every module at once: random sets, the best one wins."""

    algorithm: Literal["bootstrap"]
    trials: int = Field(10, gt=0)
    """Candidate programs: sets of demonstrations."""
    examples: int = Field(64, gt=0)
    """Dev examples that every candidate meets."""


class Proposing(Search):
    """A search whose texts a model proposes."""

    slot_tokens: int = Field(256, gt=0)
    """Longest text a proposal may put into a slot."""
    temperature: float = Field(1.0, ge=0)
    """Of the proposer."""


class MiproSearch(Choosing, Proposing):
    """Proposed instructions and bootstrapped demonstrations, chosen together by a tree-structured Parzen estimator over paired
    gains on minibatches, with full evaluations of the leaders (after MIPROv2, arXiv 2406.11695).
    """

    algorithm: Literal["mipro"]
    proposer: str | None = None
    """An entry of `models` that writes instructions; without one, candidates, alternatives and demonstrations are searched."""
    proposals: int = Field(4, ge=0)
    """Texts proposed for each slot."""
    trials: int = Field(24, gt=0)
    """Candidates scored on a minibatch."""
    minibatch: int = Field(16, gt=0)
    """Dev examples in it."""
    full_every: int = Field(6, gt=0)
    """After so many trials, and at the end, the leader is scored on all `examples`."""
    examples: int = Field(96, gt=0)
    """Dev examples of a full evaluation."""


class GepaSearch(Proposing):
    """Reflective evolution with a Pareto front over examples (GEPA, arXiv 2507.19457): a model reads what went wrong and
    rewrites one slot.
    """

    algorithm: Literal["gepa"]
    proposer: str
    """An entry of `models` that reflects and writes."""
    runs: int = Field(600, gt=0)
    """Runs of the program, all candidates together."""
    minibatch: int = Field(4, gt=0)
    """Training examples a reflection sees."""
    examples: int = Field(48, gt=0)
    """Dev examples that the Pareto front is over."""
    merge: bool = False
    """Whether two candidates of the front are merged now and then."""


def _algorithm(value: object) -> object:
    return value.get("algorithm", "halving") if isinstance(value, dict) else getattr(value, "algorithm", None)


PromptSearch = Annotated[
    Annotated[HalvingSearch, Tag("halving")]
    | Annotated[BootstrapSearch, Tag("bootstrap")]
    | Annotated[MiproSearch, Tag("mipro")]
    | Annotated[GepaSearch, Tag("gepa")],
    Discriminator(_algorithm),
]
"""Halving where no `algorithm` is named."""


def may_turn(key: str) -> bool:
    """Whether a search may set this key of a spec (``a.b``)."""
    room, *rest = key.split(".")
    of_module = room == "modules" and len(rest) == 2 and rest[1] in ("max_tokens", "model")
    return of_module or (room in ("tools", "program") and len(rest) > 1 and not key.startswith("program.inputs."))
