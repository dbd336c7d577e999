"""A model behind an API, by way of LiteLLM: for modules that are not trained.

LiteLLM is heavy and optional (extra ``remote``), so it is imported when an engine is opened. Requests run in an event loop
of the engine's own (:mod:`mmc.engine.background`). Keys are resolved when the engine is opened and kept out of all messages.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmc.engine.background import BackgroundLoop
from mmc.engine.base import Completion, Message, Request, Watch, seed_of
from mmc.errors import EnvironmentProblem, MmcError, RunFailure, UsageError
from mmc.spec.env import expand
from mmc.spec.model import LiteLlmModel

if TYPE_CHECKING:
    from tenacity import RetryCallState

FIRST_PAUSE = 1.0
"""Seconds before the first retry; doubled with each, up to ``LONGEST_PAUSE``; then up to as much again, at random."""
LONGEST_PAUSE = 60.0


class _Unusable(Exception):
    """The API answered with something that is no completion."""


class LiteLlmEngine:
    """Implements :class:`mmc.engine.base.Engine` for one ``type: litellm`` model of a spec.

    Raises EnvironmentProblem when an extra or an environment variable is missing, or the provider unknown to LiteLLM.
    """

    def __init__(self, config: LiteLlmModel) -> None:
        self._litellm = _load()
        self._config = config
        self._key = expand(config.api_key) if config.api_key is not None else None
        self._base = expand(config.api_base) if config.api_base is not None else None
        try:
            self._litellm.get_llm_provider(model=config.model, api_base=self._base)
        except self._litellm.BadRequestError:
            raise EnvironmentProblem(
                f"LiteLLM knows no provider for the model {config.model!r}; write it as in openai/gpt-4.1-mini"
            ) from None
        self._slots = asyncio.Semaphore(config.concurrency)
        self._clients = 0
        self._serving = 0
        self._answers: dict[Request, asyncio.Task[Completion]] = {}
        self._loop = BackgroundLoop(self._litellm.close_litellm_async_clients)

    # --- the interface ---

    async def complete(self, request: Request, watch: Watch | None = None) -> Completion:
        """Answers ``request``; equal requests of one batch of runs share the answer, as equal keys draw the same tokens.

        Raises EnvironmentProblem for a bad key or an unknown model, RunFailure when it failed after all retries,
        UsageError for a constraint or an adapter.
        """
        if request.constraint is not None or request.adapter is not None:
            what = "constrained decoding needs" if request.constraint is not None else "adapters need"
            raise UsageError(f"{what} a `type: local` model; {self._config.model} is `type: litellm`")
        completion = await self._loop.run(self._shared(request))
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
                self._loop.call(self._forget)

    def keeping(self) -> AbstractContextManager[None]:
        return nullcontext()

    @contextmanager
    def serving(self) -> Iterator[None]:
        """Inside, no answer is shared once it is there: a server never has a moment without clients to forget it in."""
        self._serving += 1
        try:
            yield
        finally:
            self._serving -= 1

    def elsewhere(self) -> AbstractContextManager[None]:
        return nullcontext()

    def count_tokens(self, messages: Sequence[Message]) -> int:
        """By LiteLLM's tokenizer for the model, or one much like it."""
        return int(self._litellm.token_counter(model=self._config.model, messages=_chat(messages)))

    def close(self) -> None:
        self._loop.close()

    # --- in the engine's own loop ---

    async def _shared(self, request: Request) -> Completion:
        if request not in self._answers:
            task = self._answers[request] = asyncio.create_task(self._answer(request))
            if self._serving:
                task.add_done_callback(lambda _: self._answers.pop(request, None))
        return await asyncio.shield(self._answers[request])

    def _forget(self) -> None:
        for task in self._answers.values():
            task.cancel()
        self._answers = {}

    async def _answer(self, request: Request) -> Completion:
        """One completion after as many attempts as it takes and is allowed."""
        from openai import OpenAIError
        from tenacity import AsyncRetrying, retry_if_exception, stop_after_attempt

        attempts = AsyncRetrying(
            stop=stop_after_attempt(self._config.retries + 1),
            wait=_pause,
            retry=retry_if_exception(_mends),
            reraise=True,
        )
        try:
            return await attempts(self._attempt, request)
        except (OpenAIError, TimeoutError, _Unusable) as error:
            raise self._problem(error) from None

    async def _attempt(self, request: Request) -> Completion:
        async with self._slots, asyncio.timeout(self._config.timeout):
            response = await self._litellm.acompletion(
                model=self._config.model,
                messages=_chat(request.messages),
                temperature=request.sampling.temperature,
                max_tokens=request.sampling.max_tokens,
                seed=seed_of(request.seed, *request.key) >> 32,  # APIs take 31 bits
                api_key=self._key,
                base_url=self._base,
                timeout=self._config.timeout,
                drop_params=True,
                num_retries=0,
                max_retries=0,
            )
        return _completion(response, request.sampling.temperature)

    def _problem(self, error: Exception) -> MmcError:
        """What the user hears: what no other run would escape is the environment's, the rest this run's."""
        name = f"the model {self._config.model} (`type: litellm`)"
        if isinstance(error, TimeoutError):
            return RunFailure(f"{name} did not answer within {self._config.timeout:g} seconds (timeout)")
        status, said = getattr(error, "status_code", None), self._clean(str(error))
        if status in (401, 403):
            return EnvironmentProblem(f"{name} refused the key; check its `api_key`: {said}")
        if status == 404:
            return EnvironmentProblem(f"{name} is unknown there; check its `model` and `api_base`: {said}")
        if self._key is None and "Missing credentials" in said:
            return EnvironmentProblem(f"{name} needs a key; give it `api_key: ${{env:NAME}}`: {said}")
        return RunFailure(f"{name} failed: {said}")

    def _clean(self, text: str) -> str:
        """A short line without the key."""
        if self._key:
            text = text.replace(self._key, "***")
        text = " ".join(text.split())
        return text if len(text) <= 300 else f"{text[:300]}..."


def _load() -> Any:
    """LiteLLM, quiet and without downloads of its own. Raises EnvironmentProblem when an extra is missing."""
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    try:
        import litellm
        import tenacity  # noqa: F401
    except ImportError as error:
        raise EnvironmentProblem(f"a remote model needs {error.name}: pip install 'mmc[remote]'") from error
    litellm.suppress_debug_info = True
    litellm.disable_hf_tokenizer_download = True
    litellm.telemetry = False
    return litellm


def price_of(model: str) -> tuple[float, float] | None:
    """Dollars a prompt token and a completion token by LiteLLM's own table; None when it does not say."""
    try:
        found = _load().get_model_info(model)
    except Exception:  # LiteLLM raises a bare Exception for a model it does not know
        return None
    prices = found.get("input_cost_per_token"), found.get("output_cost_per_token")
    return None if None in prices else (float(prices[0]), float(prices[1]))


def _chat(messages: Sequence[Message]) -> list[dict[str, str]]:
    return [{"role": m.role, "content": m.content} for m in messages]


def _completion(response: Any, temperature: float) -> Completion:
    """The answer in our words. Raises _Unusable when it holds none."""
    if not getattr(response, "choices", None):
        raise _Unusable("the answer holds no choices")
    choice, usage = response.choices[0], getattr(response, "usage", None)
    return Completion(
        text=choice.message.content or "",
        finish="length" if choice.finish_reason == "length" else "stop",
        temperature=temperature,
        prompt_tokens=getattr(usage, "prompt_tokens", 0) or 0,
        completion_tokens=getattr(usage, "completion_tokens", 0) or 0,
        exact=False,
        # LiteLLM says None or 0 for a model or a count it does not know.
        metadata={"cost": getattr(response, "_hidden_params", {}).get("response_cost") or None},
    )


def _mends(error: BaseException) -> bool:
    """Whether another attempt may fare better."""
    if isinstance(error, TimeoutError | _Unusable):
        return True
    status = getattr(error, "status_code", None)
    return isinstance(status, int) and (status in (408, 429) or status >= 500)


def _pause(state: RetryCallState) -> float:
    """Seconds before the next attempt: what the API asks for, or longer each time."""
    from tenacity import wait_exponential

    error = state.outcome.exception() if state.outcome is not None else None
    asked = (getattr(error, "litellm_response_headers", None) or {}).get("retry-after", "")
    least = min(float(asked), LONGEST_PAUSE) if asked.isdigit() else 0.0
    return max(least, wait_exponential(FIRST_PAUSE, LONGEST_PAUSE)(state) * random.uniform(1, 2))


def open_litellm(config: LiteLlmModel, adapters: Mapping[str, Path]) -> LiteLlmEngine:
    """The engine of a ``type: litellm`` model of a spec. Raises UsageError when modules bring ``adapters`` for it."""
    if adapters:
        raise UsageError(f"adapters need a `type: local` model; {config.model} is `type: litellm`")
    return LiteLlmEngine(config)
