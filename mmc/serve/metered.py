"""Engines that count the tokens of one request and stop it before it takes too many."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

from mmc.engine.base import Completion, Engine, Message, Request, Watch
from mmc.errors import ProgramLimit


@dataclass
class Meter:
    """What one request has taken so far, over all its engines."""

    most: int
    """Tokens it may take, read and written."""
    longest: int | None = None
    """Tokens it may write, over all calls; branches of a parallel step each count what was left when they began."""
    prompt: int = 0
    completion: int = 0
    promised: int = 0
    """Tokens that calls under way may come to need."""


class Metered:
    """Implements :class:`mmc.engine.base.Engine` for one request: the engine behind it, with a meter."""

    def __init__(self, engine: Engine, meter: Meter) -> None:
        self._engine, self._meter = engine, meter
        self.spent, self.width = engine.spent, engine.width

    async def complete(self, request: Request, watch: Watch | None = None) -> Completion:
        """Raises ProgramLimit when prompt and longest completion do not fit what is left."""
        meter = self._meter
        request = _shortened(request, meter)
        needed = self._engine.count_tokens(request.messages) + request.sampling.max_tokens
        taken = meter.prompt + meter.completion + meter.promised
        if taken + needed > meter.most:
            raise ProgramLimit(
                f"a call may need {needed} tokens, prompt included, after {taken} so far; one request may take {meter.most}"
            )
        meter.promised += needed
        try:
            completion = await self._engine.complete(request, watch)
        finally:
            meter.promised -= needed
        meter.prompt += completion.prompt_tokens
        meter.completion += completion.completion_tokens
        return completion

    def client(self) -> AbstractContextManager[None]:
        return self._engine.client()

    def keeping(self) -> AbstractContextManager[None]:
        return self._engine.keeping()

    def serving(self) -> AbstractContextManager[None]:
        return self._engine.serving()

    def elsewhere(self) -> AbstractContextManager[None]:
        return self._engine.elsewhere()

    def count_tokens(self, messages: Sequence[Message]) -> int:
        return self._engine.count_tokens(messages)

    def close(self) -> None:
        """Nothing: the engine serves others too."""


def _shortened(request: Request, meter: Meter) -> Request:
    """The request, its completion no longer than what may still be written."""
    if meter.longest is None:
        return request
    left = meter.longest - meter.completion
    if left <= 0:
        raise ProgramLimit(f"all {meter.longest} tokens that may be written are")
    return replace(request, sampling=replace(request.sampling, max_tokens=min(request.sampling.max_tokens, left)))


def metered(engines: Mapping[str, Engine], meter: Meter) -> dict[str, Engine]:
    """The engines by their models' names, each with ``meter``; models that shared one still do."""
    known: dict[int, Engine] = {}
    return {name: known.setdefault(id(engine), Metered(engine, meter)) for name, engine in engines.items()}
