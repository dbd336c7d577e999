"""A model in this process: requests of all running programs, decoded together on the prefix trie.

The engine decodes when every open client waits, for it or for another engine, and takes the pending requests in the order
of their keys; so batches depend on the work alone, never on timing, unless a client waits for an engine elsewhere: then
they depend on when its answers come. What is cached lives while any client is open, or while the caller keeps it.

A server's requests come when they come: while serving, the engine waits for nobody and lets its event loop turn after each
token, so that requests join between two.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from mmc.engine.adapters import Adapters
from mmc.engine.base import Completion, Key, Message, Request, Spent, Watch, seed_of
from mmc.engine.constraint import Constraints
from mmc.engine.memory import free_bytes, memory_for, total_bytes
from mmc.engine.pieces import Pieces
from mmc.engine.tokens import chat_ids
from mmc.errors import EnvironmentProblem, RunFailure
from mmc.spec.model import LocalModel
from mmc.trie.budget import sampling_budget, training_budget
from mmc.trie.decode import Decoder, Stream
from mmc.trie.fixed import FIXED_ON
from mmc.trie.model import TrieModel
from mmc.trie.padded import PaddedDecoder, causal_model

_UNIT = 2.0**-63
_MOST_PROMPT_TOKENS = 4_000_000
"""Tokens of prompts that are remembered so that they need not be tokenized again: some hundred megabytes."""


@dataclass(eq=False)
class _Pending:
    request: Request
    stream: Stream
    future: asyncio.Future[Completion]
    pieces: Pieces | None = None


class LocalEngine:
    """Implements :class:`mmc.engine.base.Engine` for one transformers model."""

    def __init__(self, model: Any, tokenizer: Any, batch_tokens: int | None = None, base_name: str = "") -> None:
        self.tokenizer = tokenizer
        self.stops = _stops(model, tokenizer)
        self.lm = causal_model(model)
        self.adapters = Adapters(model, base_name, tokenizer)
        self._constraints = Constraints(tokenizer, model.config.get_text_config().vocab_size, self.stops)
        self._batch_tokens = batch_tokens or sampling_budget(self.lm, total_bytes(self.lm.device))
        # In half precision a token's log-probability depends on what else is in the batch, so sampling and training differ.
        self._exact = self.lm.head.weight.dtype == torch.float32
        self.spent = Spent()
        self._prompts: dict[tuple[Message, ...], list[int]] = {}
        self._prompt_tokens = 0
        self._clients = 0
        self._keeping = 0
        self._serving = 0
        self._elsewhere = 0
        self._blocked = 0
        self._scheduled = False
        self._pending: list[_Pending] = []
        self._decoders: dict[str | None, Decoder | PaddedDecoder] = {}
        self._streams: dict[Stream, _Pending] = {}

    # --- the interface ---

    width: int | None = None

    async def complete(self, request: Request, watch: Watch | None = None) -> Completion:
        """Answers ``request``. Raises EnvironmentProblem when its adapter is unknown, RunFailure when it is too long."""
        self.adapters.check(request.adapter)
        stream = self._stream(request)
        future: asyncio.Future[Completion] = asyncio.get_running_loop().create_future()
        pending = _Pending(request, stream, future, Pieces(self._text, watch) if watch is not None else None)
        self._pending.append(pending)
        self._blocked += 1
        self._wake()
        try:
            return await future
        except asyncio.CancelledError:
            self._forget(pending)
            raise

    @contextmanager
    def client(self) -> Iterator[None]:
        """Holds the engine back until this line of control waits for it too."""
        self._clients += 1
        try:
            yield
        finally:
            self._clients -= 1
            if self._clients == 0:
                self._streams.clear()
            self._forget_unused()
            self._wake()

    @contextmanager
    def keeping(self) -> Iterator[None]:
        """Inside, prompts stay computed from one batch of runs to the next, as far as the cache's budget allows. The weights
        must not change.
        """
        self._keeping += 1
        try:
            yield
        finally:
            self._keeping -= 1
            self._forget_unused()

    @contextmanager
    def serving(self) -> Iterator[None]:
        """Inside, a step is taken whenever anybody waits, and whoever comes joins at the next one."""
        self._serving += 1
        try:
            with self.keeping():
                yield
        finally:
            self._serving -= 1

    def _forget_unused(self) -> None:
        if self._clients == 0 and self._keeping == 0:
            self._decoders.clear()

    @contextmanager
    def elsewhere(self) -> Iterator[None]:
        """Inside, a client waits for another engine and does not hold this one back."""
        self._elsewhere += 1
        self._wake()
        try:
            yield
        finally:
            self._elsewhere -= 1

    def count_tokens(self, messages: Sequence[Message]) -> int:
        return len(self.prompt_ids(tuple(messages)))

    def encode(self, request: Request, text: str, ended: bool = True) -> Completion:
        """``text`` as if it had been sampled as the answer to ``request``: its tokens, what was allowed, log-probability 0.

        ``ended`` says whether the turn ends after it. Raises RunFailure when the constraint forbids it or it is too long.
        """
        ids = list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        ids += [min(self.stops)] if ended else []
        if len(ids) > request.sampling.max_tokens:
            raise RunFailure(f"the text has {len(ids)} tokens, more than max_tokens")
        stream = self._stream(request)
        for position, token in enumerate(ids):
            allowed = stream.matcher.allowed() if stream.matcher is not None else None
            if allowed is not None and token not in allowed:
                raise RunFailure(
                    f"the constraint does not allow {self.tokenizer.decode([token])!r} at token {position}"
                )
            stream.take(token, 0.0, allowed, self.stops)
        return replace(self._completion(stream), temperature=1.0, exact=False)

    def training_tokens(self, adapter: str) -> int:
        """Distinct tokens of one forward and backward with ``adapter`` that the memory free now allows."""
        with self.adapters.active(adapter, train=True):
            return training_budget(self.lm, free_bytes(self.lm.device))

    def close(self) -> None:
        self._decoders.clear()
        self._prompts.clear()

    # --- scheduling ---

    def _wake(self) -> None:
        if not self._scheduled and self._ready():
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._turn)

    def _ready(self) -> bool:
        return self._blocked > 0 and (self._serving > 0 or self._blocked + self._elsewhere >= self._clients)

    def _turn(self) -> None:
        """Decodes until something finishes, programs go on then; for a server one step."""
        self._scheduled = False
        if not self._ready():
            return
        try:
            with memory_for("sampling", "free memory of its device, or lower the model's `batch_tokens`"):
                self._start(sorted(self._pending, key=lambda p: _sortable(p.request.key)))
                self._pending = []
                while not self._step() and not self._serving:
                    pass
        except Exception as error:  # whoever waits must hear of it, or would wait for ever
            self._fail(error)
        if self._serving:
            self._wake()

    def _step(self) -> bool:
        """One step of every decoder with work; whether anything finished."""
        finished = False
        for name in sorted((n for n, d in self._decoders.items() if d), key=lambda n: n or ""):
            with self.adapters.active(name):
                for stream in self._decoders[name].step():
                    pending = self._streams.pop(stream, None)
                    if pending is not None:
                        self._answer(pending, self._completion(stream, pending.request.logprobs))
                        finished = True
        for pending in self._streams.values():
            if pending.pieces is not None:
                pending.pieces.grow(pending.stream.ids)
        return finished or not any(self._decoders.values())

    def _start(self, pending: Sequence[_Pending]) -> None:
        for one in pending:
            request = one.request
            self._streams[one.stream] = one
            if request.adapter not in self._decoders:
                self._decoders[request.adapter] = self._decoder(request.adapter)
            self._decoders[request.adapter].add([one.stream])

    def _decoder(self, adapter: str | None) -> Decoder | PaddedDecoder:
        if isinstance(self.lm, TrieModel):
            weights = self.adapters.signature(adapter) if self.lm.device.type in FIXED_ON else None
            return Decoder(self.lm, self.stops, self._batch_tokens, self._keeping > 0, weights)
        return PaddedDecoder(self.lm, self.stops, self._batch_tokens)

    def _answer(self, pending: _Pending, completion: Completion) -> None:
        self.spent.add(completion)
        self._blocked -= 1
        if not pending.future.done():
            if pending.pieces is not None:
                pending.pieces.finish(completion.text)
            pending.future.set_result(completion)

    def _fail(self, error: Exception) -> None:
        for pending in [*self._pending, *self._streams.values()]:
            self._blocked -= 1
            if not pending.future.done():
                pending.future.set_exception(error)
        self._pending, self._streams = [], {}
        self._decoders.clear()

    def _forget(self, pending: _Pending) -> None:
        """A caller stopped waiting: its completion is no longer wanted."""
        known = pending in self._pending or pending in self._streams.values()
        if known:
            pending.stream.finish = "cancelled"  # its decoder drops it at the next step
            self._blocked -= 1
            self._pending = [p for p in self._pending if p is not pending]
            for stream in [s for s, p in self._streams.items() if p is pending]:
                del self._streams[stream]

    # --- requests and completions ---

    def prompt_ids(self, messages: tuple[Message, ...]) -> list[int]:
        """Token ids of ``messages`` with the generation prompt; the same for search, training and serving."""
        if messages not in self._prompts:
            if self._prompt_tokens > _MOST_PROMPT_TOKENS:
                self._prompts.clear()
                self._prompt_tokens = 0
            self._prompts[messages] = chat_ids(self.tokenizer, messages)
            self._prompt_tokens += len(self._prompts[messages])
        return self._prompts[messages]

    def _stream(self, request: Request) -> Stream:
        prompt_ids = self.prompt_ids(request.messages)
        longest = getattr(self.lm.model.config.get_text_config(), "max_position_embeddings", None)
        if longest and len(prompt_ids) + request.sampling.max_tokens > longest:
            raise RunFailure(
                f"the prompt has {len(prompt_ids)} tokens and {request.sampling.max_tokens} more may "
                f"follow, but the model reads at most {longest}; shorten the template's inputs or use another model"
            )
        key, seed = request.key, request.seed
        return Stream(
            prompt_ids=prompt_ids,
            max_tokens=request.sampling.max_tokens,
            temperature=request.sampling.temperature,
            draw=lambda position: seed_of(seed, *key, position) * _UNIT,
            matcher=self._constraints.matcher(request.constraint) if request.constraint is not None else None,
        )

    def _text(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))

    def _completion(self, stream: Stream, told: bool = False) -> Completion:
        """What a stream has come to; ``told``: with its tokens as texts."""
        shown = stream.ids[:-1] if stream.finish == "stop" else stream.ids
        return Completion(
            text=self._text(shown),
            finish="stop" if stream.finish == "stop" else "length",
            prompt_ids_T=tuple(stream.prompt_ids),
            ids_T=tuple(stream.ids),
            logprobs_T=tuple(stream.logprobs),
            allowed_T=tuple(stream.allowed),
            temperature=stream.temperature,
            prompt_tokens=len(stream.prompt_ids),
            completion_tokens=len(stream.ids),
            exact=self._exact,
            tokens_T=tuple(str(self.tokenizer.decode([token])) for token in stream.ids) if told else (),
        )


def _sortable(key: Key) -> tuple[tuple[bool, str | int], ...]:
    """Keys mix numbers and texts; numbers come first."""
    return tuple((isinstance(part, str), part) for part in key)


def _stops(model: Any, tokenizer: Any) -> frozenset[int]:
    """Every token that ends a turn."""
    configured = model.generation_config.eos_token_id
    stops = configured if isinstance(configured, list) else [configured]
    found = frozenset(int(t) for t in (*stops, tokenizer.eos_token_id) if t is not None)
    if not found:
        raise EnvironmentProblem("the model names no end-of-sequence token")
    return found


def open_local(config: LocalModel, resolve: Callable[[str], Path], adapters: Mapping[str, Path]) -> LocalEngine:
    """The engine of a ``type: local`` model of a spec, with ``adapters`` (name -> PEFT folder) loaded."""
    from mmc.engine.weights import find, load

    sources = [config.source] if isinstance(config.source, str) else config.source
    weights = find(sources, resolve)
    model, tokenizer = load(weights, config.dtype)
    if tokenizer.chat_template is None:
        raise EnvironmentProblem(f"{weights.source} has no chat template; use an instruction-tuned model")
    base_name = weights.source.partition(":")[2]
    if config.sampler is None:
        engine = LocalEngine(model, tokenizer, config.batch_tokens, base_name)
    else:
        from mmc.engine.vllm import VllmEngine

        engine = VllmEngine(model, tokenizer, config.batch_tokens, base_name, config.sampler, weights.folder)
    for name, folder in adapters.items():
        engine.adapters.load(name, folder)
    return engine
