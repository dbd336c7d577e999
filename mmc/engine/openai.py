"""A server that speaks OpenAI's chat API, asked directly: vLLM, SGLang, llama.cpp, Ollama, OpenAI itself.

LiteLLM knows many more providers, their prices and their peculiarities, and takes its time for each call; this engine knows one
protocol. It needs aiohttp and tenacity (extra ``remote``), imported when an engine is opened.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmc.engine.answers import Answers
from mmc.engine.base import Choice, Completion, JsonSchema, Message, Request
from mmc.engine.http import ApiError, Http
from mmc.engine.remote import (
    Api,
    RemoteEngine,
    Unusable,
    api_seed,
    chat,
    json_format,
    refused,
    status_mends,
    told_tokens,
)
from mmc.errors import MmcError, UsageError
from mmc.spec.env import expand
from mmc.spec.model import OpenAiModel

CHARACTERS = 4
"""About so many make a token of English text; a server need not tell how it counts."""


class OpenAiEngine(RemoteEngine):
    """Implements :class:`mmc.engine.base.Engine` for one ``type: openai`` model of a spec.

    Raises EnvironmentProblem when an extra or an environment variable is missing.
    """

    def __init__(self, config: OpenAiModel) -> None:
        self._config = config
        base = expand(config.api_base)
        self._name = f"the model {config.model} at {base}"
        self._http = Http(base, expand(config.api_key) if config.api_key is not None else None, config.timeout)
        api = Api(
            name=self._name,
            attempt=self._attempt,
            errors=(ApiError,),
            mends=lambda error: isinstance(error, ApiError) and (not error.status or status_mends(error.status)),
            problem=self._problem,
            asked_pause=lambda error: error.pause if isinstance(error, ApiError) else 0.0,
            goodbye=self._http.close,
        )
        named = {"type": config.type, "model": config.model, "api_base": base}
        super().__init__(api, config, Answers(named) if config.cache else None)

    def _refuse(self, request: Request) -> None:
        if request.adapter is not None:
            raise UsageError(f"adapters need a `type: local` model; {self._config.model} is `type: openai`")
        constraint = request.constraint
        if constraint is not None and not isinstance(constraint, JsonSchema) and self._config.structured != "vllm":
            raise UsageError(f"{self._name} can be constrained to JSON alone, unless it says `structured: vllm`")

    def count_tokens(self, messages: Sequence[Message]) -> int:
        """An estimate from the length of the text."""
        return sum(len(m.content) // CHARACTERS + 4 for m in messages)

    async def _attempt(self, request: Request) -> Completion:
        body: dict[str, Any] = {
            "model": self._config.model,
            "messages": chat(request.messages),
            "temperature": request.sampling.temperature,
            "max_tokens": request.sampling.max_tokens,
            "seed": api_seed(request),
            **self._structured(request),
            **({"logprobs": True} if request.logprobs else {}),
        }
        found = await self._http.post("/chat/completions", body)
        try:
            choice, usage = found["choices"][0], found.get("usage") or {}
            tokens, logprobs = told_tokens(choice.get("logprobs") if request.logprobs else None)
            return Completion(
                text=choice["message"]["content"] or "",
                finish="length" if choice["finish_reason"] == "length" else "stop",
                temperature=request.sampling.temperature,
                prompt_tokens=usage.get("prompt_tokens", 0),
                completion_tokens=usage.get("completion_tokens", 0),
                logprobs_T=logprobs,
                exact=False,
                tokens_T=tokens,
                metadata={"cost": self._cost(usage)},
            )
        except (LookupError, TypeError, AttributeError) as error:
            raise Unusable("the answer is no chat completion") from error

    def _structured(self, request: Request) -> dict[str, Any]:
        if request.constraint is None:
            return {}
        if self._config.structured != "vllm":
            return {"response_format": json_format(request.constraint)}
        return {"structured_outputs": structured_outputs(request)}

    def _cost(self, usage: Mapping[str, int]) -> float | None:
        price = self._config.price
        if price is None or not usage:
            return None
        return (usage.get("prompt_tokens", 0) * price.input + usage.get("completion_tokens", 0) * price.output) / 1e6

    def _problem(self, error: Exception) -> MmcError:
        return refused(self._name, error.status if isinstance(error, ApiError) else None, str(error))


def structured_outputs(request: Request) -> dict[str, Any]:
    """The constraint as vLLM's `structured_outputs`."""
    match request.constraint:
        case Choice(options):
            return {"choice": list(options)}
        case JsonSchema(schema):
            return {"json": json.loads(schema)}
        case constraint:
            assert constraint is not None
            return {"regex": constraint.pattern}


def open_openai(config: OpenAiModel, adapters: Mapping[str, Path]) -> OpenAiEngine:
    """The engine of a ``type: openai`` model of a spec. Raises UsageError when modules bring ``adapters`` for it."""
    if adapters:
        raise UsageError(f"adapters need a `type: local` model; {config.model} is `type: openai`")
    return OpenAiEngine(config)
