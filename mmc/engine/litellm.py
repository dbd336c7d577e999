"""A model behind an API, by way of LiteLLM: for modules that are not trained.

LiteLLM is heavy and optional (extra ``remote``), so it is imported when an engine is opened. Keys are resolved then and kept out
of all messages.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmc.engine.answers import Answers
from mmc.engine.base import Completion, JsonSchema, Message, Request
from mmc.engine.remote import (
    Api,
    RemoteEngine,
    Unusable,
    api_seed,
    chat,
    json_format,
    one_line,
    refused,
    seconds_of,
    status_mends,
    told_tokens,
)
from mmc.errors import EnvironmentProblem, MmcError, UsageError, needing
from mmc.spec.env import expand
from mmc.spec.model import LiteLlmModel


class LiteLlmEngine(RemoteEngine):
    """Implements :class:`mmc.engine.base.Engine` for one ``type: litellm`` model of a spec.

    Raises EnvironmentProblem when an extra or an environment variable is missing, or the provider unknown to LiteLLM.
    """

    def __init__(self, config: LiteLlmModel) -> None:
        self._litellm = load_litellm()
        self._config = config
        self._key = expand(config.api_key) if config.api_key is not None else None
        self._base = expand(config.api_base) if config.api_base is not None else None
        try:
            self._litellm.get_llm_provider(model=config.model, api_base=self._base)
        except self._litellm.BadRequestError:
            raise EnvironmentProblem(
                f"LiteLLM knows no provider for the model {config.model!r}; write it as in openai/gpt-4.1-mini"
            ) from None
        self._name = f"the model {config.model} (`type: litellm`)"
        api = Api(
            name=self._name,
            attempt=self._attempt,
            errors=(_openai_error(),),
            mends=_mends,
            problem=self._problem,
            asked_pause=_asked_pause,
            goodbye=self._litellm.close_litellm_async_clients,
        )
        named = {"type": config.type, "model": config.model, "api_base": self._base}
        super().__init__(api, config, Answers(named) if config.cache else None)

    def _refuse(self, request: Request) -> None:
        if request.adapter is not None:
            raise UsageError(f"adapters need a `type: local` model; {self._config.model} is `type: litellm`")
        if request.constraint is not None and not isinstance(request.constraint, JsonSchema):
            raise UsageError(f"{self._config.model} (`type: litellm`) can be constrained to JSON alone")

    def count_tokens(self, messages: Sequence[Message]) -> int:
        """By LiteLLM's tokenizer for the model, or one much like it."""
        return int(self._litellm.token_counter(model=self._config.model, messages=chat(messages)))

    # --- in the loop of the calls ---

    async def _attempt(self, request: Request) -> Completion:
        response = await self._litellm.acompletion(
            model=self._config.model,
            messages=chat(request.messages),
            temperature=request.sampling.temperature,
            max_tokens=request.sampling.max_tokens,
            seed=api_seed(request),
            api_key=self._key,
            base_url=self._base,
            timeout=self._config.timeout,
            drop_params=True,
            num_retries=0,
            max_retries=0,
            **({"response_format": json_format(request.constraint)} if request.constraint is not None else {}),
            **({"logprobs": True} if request.logprobs else {}),
        )
        return _completion(response, request)

    def _problem(self, error: Exception) -> MmcError:
        said = one_line(str(error), self._key)
        if self._key is None and "Missing credentials" in said:
            return EnvironmentProblem(f"{self._name} needs a key; give it `api_key: ${{env:NAME}}`: {said}")
        return refused(self._name, getattr(error, "status_code", None), said)


def load_litellm() -> Any:
    """LiteLLM, quiet and without downloads of its own. Raises EnvironmentProblem when an extra is missing."""
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    with needing("remote", "a remote model"):
        import litellm
        import tenacity  # noqa: F401
    litellm.suppress_debug_info = True
    litellm.disable_hf_tokenizer_download = True
    litellm.telemetry = False
    return litellm


def price_of(model: str) -> tuple[float, float] | None:
    """Dollars a prompt token and a completion token by LiteLLM's own table; None when it does not say."""
    try:
        found = load_litellm().get_model_info(model)
    except Exception:  # LiteLLM raises a bare Exception for a model it does not know
        return None
    prices = found.get("input_cost_per_token"), found.get("output_cost_per_token")
    return None if None in prices else (float(prices[0]), float(prices[1]))


def _completion(response: Any, request: Request) -> Completion:
    """The answer in our words. Raises Unusable when it holds none."""
    if not getattr(response, "choices", None):
        raise Unusable("the answer holds no choices")
    choice, usage = response.choices[0], getattr(response, "usage", None)
    told: Any = getattr(choice, "logprobs", None) if request.logprobs else None
    tokens, logprobs = told_tokens(told.model_dump() if hasattr(told, "model_dump") else told)
    return Completion(
        text=choice.message.content or "",
        finish="length" if choice.finish_reason == "length" else "stop",
        logprobs_T=logprobs,
        temperature=request.sampling.temperature,
        prompt_tokens=getattr(usage, "prompt_tokens", 0) or 0,
        completion_tokens=getattr(usage, "completion_tokens", 0) or 0,
        exact=False,
        tokens_T=tokens,
        # LiteLLM says None or 0 for a model or a count it does not know.
        metadata={"cost": getattr(response, "_hidden_params", {}).get("response_cost") or None},
    )


def _openai_error() -> type[Exception]:
    """What LiteLLM's exceptions are kinds of."""
    from openai import OpenAIError

    found: type[Exception] = OpenAIError
    return found


def _mends(error: BaseException) -> bool:
    status = getattr(error, "status_code", None)
    return isinstance(status, int) and status_mends(status)


def _asked_pause(error: BaseException) -> float:
    return seconds_of((getattr(error, "litellm_response_headers", None) or {}).get("retry-after", ""))


def open_litellm(config: LiteLlmModel, adapters: Mapping[str, Path]) -> LiteLlmEngine:
    """The engine of a ``type: litellm`` model of a spec. Raises UsageError when modules bring ``adapters`` for it."""
    if adapters:
        raise UsageError(f"adapters need a `type: local` model; {config.model} is `type: litellm`")
    return LiteLlmEngine(config)
