"""What all engines behind an API share: how many requests at a time, how long, how often again, and who shares an answer.

Requests run in an event loop of their own (:mod:`mmc.engine.background`).
"""

from __future__ import annotations

import asyncio
import json
import math
import random
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Protocol

from mmc.engine.answers import Answers
from mmc.engine.background import BackgroundLoop
from mmc.engine.base import Completion, Constraint, JsonSchema, Message, Request, Spent, Watch, seed_of
from mmc.errors import EnvironmentProblem, MmcError, RunFailure

if TYPE_CHECKING:
    from tenacity import RetryCallState

FIRST_PAUSE = 1.0
"""Seconds before the first retry; doubled with each, up to ``LONGEST_PAUSE``; then up to as much again, at random."""
LONGEST_PAUSE = 60.0
SHARED = 4096
"""Answers kept for equal requests while any client is open. Runs of one tree, the only ones that ask for the same, go side by
side, so the oldest can go."""


class Limits(Protocol):
    """The keys that every remote model of a spec has."""

    @property
    def concurrency(self) -> int: ...
    @property
    def timeout(self) -> float: ...
    @property
    def retries(self) -> int: ...


class Unusable(Exception):
    """The API answered with something that is no completion."""


@dataclass(frozen=True)
class Api:
    """One API: how it is asked once, and what its errors mean. All of it runs in the loop of the engine."""

    name: str
    """As messages call it."""
    attempt: Callable[[Request], Awaitable[Completion]]
    errors: tuple[type[Exception], ...]
    """What ``attempt`` raises beside TimeoutError and :class:`Unusable`."""
    mends: Callable[[BaseException], bool]
    """Whether another attempt may fare better."""
    problem: Callable[[Exception], MmcError]
    """What the user hears once it is given up."""
    asked_pause: Callable[[BaseException], float]
    """Seconds that the API asks to wait; 0 when it asks for nothing."""
    goodbye: Callable[[], Awaitable[None]]


class RemoteCalls:
    """Completions of one API. Equal requests share an answer while any client is open, as equal keys draw the same tokens."""

    def __init__(self, api: Api, limits: Limits, answers: Answers | None = None) -> None:
        self._api, self._limits, self._kept = api, limits, answers
        self.spent = Spent()
        self._slots = asyncio.Semaphore(limits.concurrency)
        self._clients = self._serving = 0
        self._answers: dict[Request, asyncio.Task[Completion]] = {}
        self.loop = BackgroundLoop(api.goodbye)

    async def complete(self, request: Request, watch: Watch | None = None) -> Completion:
        """Answers ``request`` after as many attempts as it takes and is allowed; raises what ``problem`` makes of an error.

        ``watch`` hears of the text once it is there.
        """
        completion = await self.loop.run(self._shared(request))
        if watch is not None:
            watch(completion.text)
        return completion

    @contextmanager
    def client(self) -> Iterator[None]:
        """Answers are shared while any client is open."""
        self._clients += 1
        try:
            yield
        finally:
            self._clients -= 1
            if self._clients == 0:
                self.loop.call(self._forget)

    @contextmanager
    def serving(self) -> Iterator[None]:
        """Inside, no answer is shared once it is there: a server never has a moment without clients to forget it in."""
        self._serving += 1
        try:
            yield
        finally:
            self._serving -= 1

    def close(self) -> None:
        """Ends the loop; what still runs is cancelled."""
        self.loop.close()
        if self._kept is not None:
            self._kept.close()

    # --- in the loop ---

    async def _shared(self, request: Request) -> Completion:
        task = self._answers.get(request)
        if task is None:
            task = self._answers[request] = asyncio.create_task(self._answer(request))
            if self._serving:
                task.add_done_callback(lambda _: self._answers.pop(request, None))
            if len(self._answers) > SHARED:
                oldest = next(iter(self._answers))
                if self._answers[oldest].done():
                    del self._answers[oldest]
        return await asyncio.shield(task)

    def _forget(self) -> None:
        for task in self._answers.values():
            task.cancel()
        self._answers = {}

    async def _answer(self, request: Request) -> Completion:
        kept = self._kept.find(request) if self._kept is not None else None
        if kept is not None:
            return kept
        found = await self._asked(request)
        if self._kept is not None:
            self._kept.keep(request, found)
        return found

    async def _asked(self, request: Request) -> Completion:
        """One completion after as many attempts as it takes and is allowed."""
        from tenacity import AsyncRetrying, retry_if_exception, stop_after_attempt

        attempts = AsyncRetrying(
            stop=stop_after_attempt(self._limits.retries + 1),
            wait=self._pause,
            retry=retry_if_exception(self._mends),
            reraise=True,
        )
        try:
            return await attempts(self._attempt, request)
        except TimeoutError:
            raise RunFailure(
                f"{self._api.name} did not answer within {self._limits.timeout:g} seconds (timeout)"
            ) from None
        except Unusable as error:
            raise RunFailure(f"{self._api.name} failed: {error}") from None
        except self._api.errors as error:
            raise self._api.problem(error) from None

    async def _attempt(self, request: Request) -> Completion:
        async with self._slots, asyncio.timeout(self._limits.timeout):
            completion = await self._api.attempt(request)
        self.spent.add(completion)
        return completion

    def _mends(self, error: BaseException) -> bool:
        return isinstance(error, TimeoutError | Unusable) or self._api.mends(error)

    def _pause(self, state: RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome is not None else None
        asked = self._api.asked_pause(error) if error is not None else 0.0
        return pause_before(state, asked, FIRST_PAUSE, LONGEST_PAUSE)


def pause_before(state: RetryCallState, asked: float, first: float, longest: float) -> float:
    """Seconds before the next attempt: what the service ``asked`` for, or longer each time; never all clients at once."""
    from tenacity import wait_exponential

    return max(min(asked, longest), wait_exponential(first, longest)(state) * random.uniform(1, 2))


class RemoteEngine:
    """What every engine of an API is; each says what it refuses, and how it counts tokens."""

    def __init__(self, api: Api, limits: Limits, answers: Answers | None) -> None:
        self._calls = RemoteCalls(api, limits, answers)
        self.spent, self.width = self._calls.spent, limits.concurrency

    async def complete(self, request: Request, watch: Watch | None = None) -> Completion:
        """Answers ``request``; equal requests of one batch of runs share the answer, as equal keys draw the same tokens.

        Raises EnvironmentProblem for a bad key or an unknown model, RunFailure when it failed after all retries,
        UsageError for what the model cannot do.
        """
        self._refuse(request)
        return await self._calls.complete(request, watch)

    def _refuse(self, request: Request) -> None:
        raise NotImplementedError

    def client(self) -> AbstractContextManager[None]:
        return self._calls.client()

    def keeping(self) -> AbstractContextManager[None]:
        return nullcontext()

    def serving(self) -> AbstractContextManager[None]:
        return self._calls.serving()

    def elsewhere(self) -> AbstractContextManager[None]:
        return nullcontext()

    def close(self) -> None:
        self._calls.close()


def refused(name: str, status: int | None, said: str) -> MmcError:
    """What the user hears: what no other run would escape is the environment's, the rest this run's."""
    if status in (401, 403):
        return EnvironmentProblem(f"{name} refused the key; check its `api_key`: {said}")
    if status == 404:
        return EnvironmentProblem(f"{name} is unknown there; check its `model` and `api_base`: {said}")
    return RunFailure(f"{name} failed: {said}")


def status_mends(status: int) -> bool:
    """Whether a request that was answered with this HTTP status deserves another attempt."""
    return status in (408, 429) or status >= 500


def seconds_of(retry_after: str) -> float:
    """Seconds that a Retry-After header asks for, as a number or until a date (RFC 9110, 10.2.3); 0 where it says neither."""
    try:
        found = float(retry_after)
    except ValueError:
        try:
            found = parsedate_to_datetime(retry_after).timestamp() - time.time()
        except (ValueError, OverflowError):
            return 0.0
    return max(0.0, found) if math.isfinite(found) else 0.0


def told_tokens(logprobs: object) -> tuple[tuple[str, ...], tuple[float, ...]]:
    """Tokens and their log-probabilities in `logprobs` of a choice; none where the API did not give them, whatever it gave."""
    content = logprobs.get("content") if isinstance(logprobs, Mapping) else None
    try:
        pairs = [(str(one["token"]), float(one["logprob"])) for one in content or ()]
    except (LookupError, TypeError, ValueError):
        return (), ()
    return tuple(token for token, _ in pairs), tuple(value for _, value in pairs)


def chat(messages: Sequence[Message]) -> list[dict[str, str]]:
    """Messages as APIs take them."""
    return [{"role": m.role, "content": m.content} for m in messages]


def api_seed(request: Request) -> int:
    """The seed of a request's key, in the 31 bits that APIs take."""
    return seed_of(request.seed, *request.key) >> 32


def json_format(constraint: Constraint) -> dict[str, Any]:
    """A JSON constraint as `response_format` of OpenAI's API."""
    assert isinstance(constraint, JsonSchema)
    schema = {"name": "output", "strict": True, "schema": json.loads(constraint.schema)}
    return {"type": "json_schema", "json_schema": schema}


def one_line(text: str, secret: str | None) -> str:
    """A short line without the key."""
    if secret:
        text = text.replace(secret, "***")
    text = " ".join(text.split())
    return text if len(text) <= 300 else f"{text[:300]}..."
