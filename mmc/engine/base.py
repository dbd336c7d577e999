"""Where completions come from: the request, the completion, and the interface of an engine.

An engine takes one chat request and answers one completion. It is asynchronous and forms its own batches: the
program runner awaits calls, and a local engine decodes whatever all running programs are waiting for together.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Key = tuple[str | int, ...]
"""Orders requests and seeds draws: (stage, step, example id, rollout, call position)."""


@dataclass(frozen=True)
class Message:
    """One chat message."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True)
class Choice:
    """The completion is exactly one of these texts (its canonical tokenization, then end of turn)."""

    options: tuple[str, ...]


@dataclass(frozen=True)
class JsonSchema:
    """The completion is one JSON document that satisfies ``schema`` (serialized JSON)."""

    schema: str


@dataclass(frozen=True)
class Regex:
    """The completion matches ``pattern`` from beginning to end."""

    pattern: str


Constraint = Choice | JsonSchema | Regex


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. Temperature 0 is greedy; log-probabilities are then those at temperature 1."""

    temperature: float = 1.0
    max_tokens: int = 64


@dataclass(frozen=True)
class Request:
    """One LM call to make.

    ``key`` names the call (see :data:`Key`); equal keys and equal ``seed`` draw the same tokens. ``adapter`` is the
    name of the adapter to sample with, None for the base model.
    """

    key: Key
    messages: tuple[Message, ...]
    sampling: Sampling = Sampling()
    constraint: Constraint | None = None
    adapter: str | None = None
    seed: int = 0
    logprobs: bool = False
    """Whether the completion is to tell its tokens and their log-probabilities."""


@dataclass(frozen=True)
class Completion:
    """What an engine answered, token for token, so that training never tokenizes text again.

    ``ids_T`` are the sampled tokens including the end-of-turn token when ``finish`` is ``stop``. ``logprobs_T`` are the
    log-probabilities under the distribution they were drawn from (temperature and constraint applied). ``allowed_T``
    holds for every position the token ids the constraint allowed there, None where all were; a position with
    exactly one allowed token was forced: its log-probability is 0 and it carries no gradient.
    An engine that cannot give ids (a remote API) leaves the tuples empty. When a request asks for log-probabilities, ``tokens_T``
    are the texts of the tokens; a remote API then gives ``logprobs_T`` too, unless it knows none. ``exact`` says whether the
    log-probabilities are those that training computes for the same tokens; another engine's, model's or program's are not, and
    training corrects for it.
    """

    text: str
    finish: Literal["stop", "length"]
    prompt_ids_T: tuple[int, ...] = ()
    ids_T: tuple[int, ...] = ()
    logprobs_T: tuple[float, ...] = ()
    allowed_T: tuple[NDArray[np.int32] | None, ...] = ()
    temperature: float = 1.0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    exact: bool = True
    tokens_T: tuple[str, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)


Watch = Callable[[str], object]
"""Takes the next piece of a completion's text; together they are the text. An engine that knows no pieces gives one."""


@dataclass
class Spent:
    """What an engine has answered since it was opened."""

    tokens: int = 0
    """Of prompts and completions."""
    dollars: float | None = 0.0
    """None when a price is not known."""

    def add(self, completion: Completion) -> None:
        self.tokens += completion.prompt_tokens + completion.completion_tokens
        cost = completion.metadata.get("cost", 0.0)
        self.dollars = None if cost is None or self.dollars is None else self.dollars + float(cost)


class Engine(Protocol):
    """Answers requests. Implementations: one file each beside this one."""

    spent: Spent
    """What it has answered so far."""

    @property
    def width(self) -> int | None:
        """How many requests it takes at a time; None when it forms batches from all that wait."""
        ...

    async def complete(self, request: Request, watch: Watch | None = None) -> Completion:
        """Answers one request; many may be awaited at the same time. ``watch`` hears of the text as it grows."""
        ...

    def client(self) -> AbstractContextManager[None]:
        """Wraps the life of one line of control that will call :meth:`complete`.

        A local engine decodes when every open client waits for it or for another engine; so batches depend on the
        work alone, and on when answers come only where a remote engine is among them. A program run opens one; each branch of a
        ``parallel`` step opens one while its parent holds none.
        """
        ...

    def keeping(self) -> AbstractContextManager[None]:
        """Wraps several batches of runs with the same weights, whose prompts have beginnings in common: worth keeping."""
        ...

    def serving(self) -> AbstractContextManager[None]:
        """Wraps the life of a server: requests of different origin wait for nobody and join whatever is being decoded, so
        batches depend on when requests come. What prompts have in common is kept, too.
        """
        ...

    def elsewhere(self) -> AbstractContextManager[None]:
        """Wraps a client's wait for another engine, during which it does not hold this one back."""
        ...

    def count_tokens(self, messages: Sequence[Message]) -> int:
        """The number of prompt tokens of ``messages``, generation prompt included."""
        ...

    def close(self) -> None:
        """Frees what the engine holds."""
        ...


def distinct(engines: Mapping[str, Engine]) -> list[Engine]:
    """Every engine once, in order; models may share one."""
    return list({id(engine): engine for engine in engines.values()}.values())


def seed_of(*parts: object) -> int:
    """A 63-bit seed from the hash of ``parts``: the same on every machine, in every process and order."""
    digest = hashlib.blake2b("\x1f".join(map(repr, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
