"""Continuous batching over the trie: every step feeds the newest tokens of all live streams as one row.

Streams that have sampled the same tokens so far are one path of the cache and cost one row. Tokens that a constraint
forces are appended without a forward of their own. Draws are inverse-CDF on a uniform number that the caller derives by
hash, so they depend neither on the batch nor on the order.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmc.trie.cache import Segment, TrieCache
from mmc.trie.draw import Pick, draw
from mmc.trie.fixed import MemoryPool, fixed_logits
from mmc.trie.model import TrieModel
from mmc.trie.pack import common_prefix, sort_order

_SAMPLE_ROWS = 64
"""Rows of the vocabulary that are sampled from at a time; bounds the copies of the logits."""
SETTLE_EVERY = 16
"""Steps after which it is asked again which streams are worth a lane of the cache."""


class Matcher(Protocol):
    """Follows one completion through a constraint."""

    def allowed(self) -> NDArray[np.int32] | None:
        """Token ids that may come next, ascending; None when all may."""
        ...

    def advance(self, token: int) -> None:
        """Takes one token."""
        ...


@dataclass(eq=False)
class Stream:
    """One completion being decoded. ``draw(position)`` gives the uniform number in [0, 1) of that position."""

    prompt_ids: Sequence[int]
    max_tokens: int
    temperature: float
    draw: Callable[[int], float]
    matcher: Matcher | None = None
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    allowed: list[NDArray[np.int32] | None] = field(default_factory=list)
    next: NDArray[np.int32] | None = None
    """Ids that may come next, once forced tokens are taken; None: all."""
    finish: str | None = None
    segment: Segment | None = None
    fed: int = 0
    """How many of ``ids`` have been fed."""

    def take(self, token: int, logprob: float, allowed: NDArray[np.int32] | None, stops: frozenset[int]) -> None:
        """Appends a token and notices the end."""
        self.ids.append(token)
        self.logprobs.append(logprob)
        self.allowed.append(allowed)
        if token in stops:
            self.finish = "stop"
        elif len(self.ids) >= self.max_tokens:
            self.finish = "length"
        elif self.matcher is not None:
            self.matcher.advance(token)

    def pick(self, row: int) -> Pick:
        """How the next token is drawn, from which row of the logits."""
        uniform = self.draw(len(self.ids)) if self.temperature else None
        return Pick(row, self.temperature or 1.0, uniform, self.next)

    def take_forced(self, stops: frozenset[int]) -> None:
        """Appends tokens while exactly one is allowed, and notes what is allowed after them."""
        self.next = None
        while self.finish is None and self.matcher is not None:
            allowed = self.matcher.allowed()
            if allowed is None or len(allowed) != 1:
                self.next = allowed
                return
            self.take(int(allowed[0]), 0.0, allowed, stops)


def take_drawn(logits_UV: Tensor, rows: Sequence[tuple[Stream, int]], stops: frozenset[int]) -> None:
    """Draws the next token of streams, each from its row of the logits (U, vocabulary), and takes what is forced after it."""
    picks = [stream.pick(row) for stream, row in rows]
    for (stream, _), pick, drawn in zip(rows, picks, draw(logits_UV, picks), strict=True):
        stream.take(*drawn, pick.allowed, stops)
        stream.take_forced(stops)


class Decoder:
    """Decodes streams over one cache. Streams may be added between steps."""

    def __init__(
        self, model: TrieModel, stops: frozenset[int], budget: int, keep: bool = False, weights: Hashable = None
    ) -> None:
        """With ``keep``, prompts stay in the cache when their streams have left, until others need the room. ``weights`` names
        what the model computes with: steps that were captured with the same are used again; None captures none.
        """
        self._model = model
        self._stops = stops
        self._budget = budget
        self._cache = TrieCache(model.device, memory=model.unused_memory.take(weights))
        weakref.finalize(self, _give_back, model.unused_memory, self._cache)
        self._waiting: list[Stream] = []
        self._live: list[Stream] = []
        self._leaving: list[Segment] = []
        self._steps = 0
        self._keep = keep
        self._kept: deque[Segment] = deque()
        """Ends of prompts, the oldest first."""
        self.forwarded = 0
        """Tokens fed so far."""

    def add(self, streams: Sequence[Stream]) -> None:
        """Queues streams; they are admitted in this order as the budget of cached tokens allows."""
        self._waiting.extend(streams)

    def __bool__(self) -> bool:
        return bool(self._waiting or self._live)

    @torch.no_grad()
    def step(self) -> list[Stream]:
        """One forward and one draw for every live stream; gives the streams that finished."""
        finished, segments = self._feed()
        if segments:
            lengths = [len(segment.tokens) for segment in segments]
            self.forwarded += sum(lengths)
            ends = np.cumsum(lengths) - 1
            row_of = {segment: int(end) for segment, end in zip(segments, ends, strict=True)}
            self._draw(self._logits(segments), row_of)
        for stream in self._live:
            if stream.finish is not None:
                assert stream.segment is not None
                self._leaving.append(stream.segment)
                finished.append(stream)
        self._live = [s for s in self._live if s.finish is None]
        return finished

    def _feed(self) -> tuple[list[Stream], list[Segment]]:
        """Admits streams and puts all new tokens into the tree; gives streams already done and segments to compute."""
        self._settle()
        new: dict[Segment, None] = {}
        for stream in self._live:
            assert stream.segment is not None
            self._move(stream, stream.segment, stream.ids[stream.fed :], new)
        admitted, done = self._admit()
        for stream in admitted:
            self._move(stream, self._cache.root, [*stream.prompt_ids, *stream.ids], new)
            if self._keep and stream.segment is not None:
                self._cache.hold(stream.segment)
                self._kept.append(stream.segment)
        # What finished streams leave is freed only now, so that newcomers could share it.
        for segment in self._leaving:
            self._cache.release(segment)
        self._leaving = []
        self._live = [*self._live, *admitted]
        return done, list(new)

    def _settle(self) -> None:
        """Gives lanes of the cache to streams that have come to share little; at once to those that have outgrown theirs.

        What lanes set aside may take as much memory as the budget once more.
        """
        ends = [stream.segment for stream in self._live if stream.segment is not None]
        self._steps = self._steps + 1 if ends else 0  # so that it depends on this work alone
        due = self._steps % SETTLE_EVERY == SETTLE_EVERY - 1
        if due or any(end.lane is not None and not end.room for end in ends):
            self._cache.settle(ends, 2 * self._budget - self._reserved() - self._cache.vacant)

    def _reserved(self) -> int:
        """Tokens that the cache holds, and those that the live streams may come to add."""
        return self._cache.used + sum(s.max_tokens - s.fed for s in self._live)

    def _move(self, stream: Stream, start: Segment, tokens: Sequence[int], new: dict[Segment, None]) -> None:
        segment, added = self._cache.insert(start, tokens)
        for one in added:
            new[one] = None
        self._cache.hold(segment)
        if stream.segment is not None:
            self._cache.release(stream.segment)
        stream.segment, stream.fed = segment, len(stream.ids)

    def _admit(self) -> tuple[list[Stream], list[Stream]]:
        """Waiting streams that fit the budget now, relatives side by side; and those that need no forward at all."""
        admitted: list[Stream] = []
        done: list[Stream] = []
        reserved = self._reserved()
        previous: Sequence[int] = ()
        while self._waiting:
            stream = self._waiting[0]
            cost = self._cost(stream, previous)
            while self._kept and reserved + cost > self._budget:
                before = self._cache.used
                self._cache.release(self._kept.popleft())
                reserved += self._cache.used - before
                cost = self._cost(stream, previous)
            if (self._live or admitted) and reserved + cost > self._budget:
                break
            del self._waiting[0]
            reserved += cost
            previous = stream.prompt_ids
            stream.take_forced(self._stops)
            (admitted if stream.finish is None else done).append(stream)
        order = sort_order([s.prompt_ids for s in admitted])
        return [admitted[i] for i in order], done

    def _cost(self, stream: Stream, previous: Sequence[int]) -> int:
        """Tokens of the cache that a waiting stream may come to need; ``previous`` is the prompt that is admitted before it."""
        known = max(self._cache.matched(stream.prompt_ids), common_prefix(previous, stream.prompt_ids))
        return len(stream.prompt_ids) - known + stream.max_tokens

    def _logits(self, segments: Sequence[Segment]) -> Callable[[NDArray[np.int64]], Tensor]:
        """Computes ``segments``; gives what tells the logits (U, V) of U of their tokens."""
        known_NV = fixed_logits(self._model, self._cache, segments)
        if known_NV is not None:
            return lambda rows: known_NV[torch.from_numpy(rows).to(known_NV.device)]
        hidden_NH = self._model.hidden(*self._cache.layout(segments))
        return lambda rows: self._model.logits(hidden_NH[torch.from_numpy(rows).to(hidden_NH.device)])

    def _draw(self, logits: Callable[[NDArray[np.int64]], Tensor], row_of: dict[Segment, int]) -> None:
        """The next token of every live stream, and what is forced after it."""
        rows = [row_of[s.segment] for s in self._live if s.segment is not None]
        unique, inverse = np.unique(rows, return_inverse=True)
        for start in range(0, len(unique), _SAMPLE_ROWS):
            chunk = unique[start : start + _SAMPLE_ROWS]
            here = [
                (stream, row)
                for stream, row in zip(self._live, (inverse - start).tolist(), strict=True)
                if 0 <= row < len(chunk)
            ]
            take_drawn(logits(chunk), here, self._stops)


def _give_back(pool: MemoryPool, cache: TrieCache) -> None:
    pool.give_back(cache.memory)
