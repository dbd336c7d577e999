"""One LM call of a module: its typed inputs, its request, its completion."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

from mmc.engine.base import Completion, Engine, Key, Request, Sampling, distinct
from mmc.errors import RunFailure
from mmc.program.graph import Program
from mmc.program.outputs import Options
from mmc.spec.model import Module
from mmc.spec.types import coerce, parse_type


def typed_inputs(module: Module, name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a module's inputs as its declared types. Raises RunFailure."""
    inputs = dict(values)
    for key, kind in module.inputs.items():
        try:
            inputs[key] = coerce(inputs[key], parse_type(kind))
        except ValueError as error:
            raise RunFailure(f"{name}: input {key}: {error}") from None
    return inputs


def make_request(
    program: Program, module: str, inputs: Mapping[str, Any], key: Key, temperature: float, seed: int
) -> tuple[Request, Options]:
    """The request of one call of ``module``, and the options of its enum outputs."""
    config, reader = program.spec.modules[module], program.readers[module]
    options = reader.options(inputs)
    request = Request(
        key=key,
        messages=program.templates[module].render({**inputs, "choices": options}),
        sampling=Sampling(temperature, config.max_tokens),
        constraint=reader.constraint(options),
        adapter=program.adapters[module],
        seed=seed,
        logprobs=config.logprobs,
    )
    return request, options


async def complete(engines: Mapping[str, Engine], model: str, request: Request) -> Completion:
    """The completion of ``request`` by ``model``; meanwhile the caller holds no other engine back."""
    engine = engines[model]
    with ExitStack() as others:
        for other in distinct(engines):
            if other is not engine:
                others.enter_context(other.elsewhere())
        return await engine.complete(request)
