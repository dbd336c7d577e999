"""Decoding steps of a fixed shape, which CUDA replays from a graph.

A step of a small batch is a thousand kernels of a few microseconds; launching them one by one from Python takes longer than
they do. So the rows of a step are padded to a power of two, and every row attends to all slots of the cache up to a
power of two, under a mask. Such a step runs the same kernels on the same memory every time: it is captured once, and replayed.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from mmc.trie.attention import Block, Layout

if TYPE_CHECKING:
    from mmc.trie.cache import Segment, TrieCache
    from mmc.trie.model import TrieModel

FIXED_ON = {"cuda"}
"""Kinds of devices where small decoding steps have a fixed shape."""
MOST_ROWS = 256
"""Of a step with a fixed shape: its mask has a place for every row and slot."""
LEAST_ROWS, LEAST_SLOTS = 8, 1024
"""What a step is padded to at least, so that few shapes are captured."""
LEAST_CAPTURED = 4096
"""Slots of a cache whose steps are captured: when it grows, they must be captured anew."""
MOST_UNUSED = 2
"""Of the memories that no cache uses, kept."""


@dataclass(eq=False)
class CacheMemory:
    """Keys and values (capacity, H, D) of a cache's slots, by layer, and the steps that were captured on this memory."""

    capacity: int
    weights: Hashable = None
    """Names what the model of the captured steps computes with; None: nothing is captured."""
    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)
    steps: dict[tuple[int, int], FixedStep] = field(default_factory=dict)
    """By rows and slots."""

    def grown(self, capacity: int, used: int) -> CacheMemory:
        """A larger one with the content of the first ``used`` slots."""
        grown = CacheMemory(capacity, self.weights)
        for old, new in ((self.keys, grown.keys), (self.values, grown.values)):
            for memory in old:
                new.append(_zeros(capacity, memory))
                new[-1][:used] = memory[:used]
        return grown

    def room_for(self, layer: int, key: Tensor, value: Tensor) -> None:
        """Makes the memory of ``layer`` when its first keys and values (N, H, D) come."""
        if layer == len(self.keys):
            for memory, new in ((self.keys, key), (self.values, value)):
                memory.append(_zeros(self.capacity, new))


def _zeros(count: int, like: Tensor) -> Tensor:
    """``count`` rows as those of ``like``. On CPU by NumPy, whose zeros are no memory until they are written to."""
    if like.device.type != "cpu":
        return like.new_zeros(count, *like.shape[1:])
    row = like[:1].numel() * like.element_size()
    return torch.from_numpy(np.zeros(count * row, dtype=np.uint8)).view(like.dtype).view(count, *like.shape[1:])


class MemoryPool:
    """What no cache of one model uses now, kept for the next one together with its captured steps."""

    def __init__(self) -> None:
        self._unused: list[CacheMemory] = []

    def take(self, weights: Hashable) -> CacheMemory:
        """A memory whose steps were captured with the same weights, if one is unused; else a new one."""
        for memory in self._unused:
            if memory.weights == weights:
                self._unused.remove(memory)
                return memory
        return CacheMemory(LEAST_SLOTS if weights is None else LEAST_CAPTURED, weights)

    def give_back(self, memory: CacheMemory) -> None:
        """Keeps what steps were captured on; drops what has lain unused for longest where there is too much."""
        if memory.steps:
            self._unused = [*self._unused, memory][-MOST_UNUSED:]


def fixed_logits(model: TrieModel, cache: TrieCache, segments: Sequence[Segment]) -> Tensor | None:
    """Logits (N, V) after each of the N tokens of ``segments``, which are computed; None where they need a step of their own."""
    count = sum(len(segment.tokens) for segment in segments)
    kind = model.device.type
    if kind not in FIXED_ON or cache.memory.weights is None or not cache.memory.keys or count > MOST_ROWS:
        return None
    rows, spare = _power(count, LEAST_ROWS), cache.spare
    span = min(_power(cache.highest + 1, LEAST_SLOTS), cache.memory.capacity)
    steps = cache.memory.steps
    try:
        if (rows, span) not in steps:
            steps[rows, span] = FixedStep(model, cache.memory, rows, span)
        steps[rows, span].fill(cache, segments, spare)
        logits = steps[rows, span].run()
    except RuntimeError as error:
        FIXED_ON.discard(kind)
        steps.clear()
        cause = str(error).strip().splitlines()[:1]
        warnings.warn(f"decoding steps cannot be captured here, so sampling is slower: {cause}", stacklevel=2)
        return None
    for segment in segments:
        segment.fresh = False
    return logits[:count]


def _power(count: int, least: int) -> int:
    return max(least, 1 << (count - 1).bit_length())


class FixedStep:
    """One step of ``rows`` rows over the first ``span`` slots. Implements :class:`mmc.trie.attention.KeyValueStore`."""

    def __init__(self, model: TrieModel, memory: CacheMemory, rows: int, span: int) -> None:
        self._model, self._memory, self._rows, self._span = model, memory, rows, span
        pinned = model.device.type == "cuda"

        def pair(*shape: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
            """The same on the host and on the device."""
            host = torch.zeros(shape, dtype=dtype, pin_memory=pinned)
            return host, torch.zeros(shape, dtype=dtype, device=model.device)

        self._host, self._numbers = pair(3, rows, dtype=torch.long)
        self._host_seen, self._seen = pair(rows, span, dtype=torch.bool)
        self._host_depths, self._depths = pair(span, dtype=torch.long)
        self._replay: Callable[[], Any] | None = None
        self._logits: Tensor | None = None

    def fill(self, cache: TrieCache, segments: Sequence[Segment], spare: int) -> None:
        """Tokens, positions, slots and what each row sees; rows that are not needed see the ``spare`` slot alone."""
        tokens, positions, slots = self._host.numpy()
        seen = self._host_seen.numpy()
        tokens[:], positions[:], slots[:] = 0, 0, spare
        seen[:] = False
        row = 0
        for segment in segments:
            count, before = len(segment.tokens), len(segment.path) - len(segment.tokens)
            end = row + count
            tokens[row:end], slots[row:end] = segment.tokens, segment.slots
            positions[row:end] = before + np.arange(count)
            for i in range(count):
                seen[row + i, segment.path[: before + i + 1]] = True
            row = end
        seen[row:, spare] = True
        self._host_depths.numpy()[:] = cache.positions[: self._span]
        for here, there in (
            (self._host, self._numbers),
            (self._host_seen, self._seen),
            (self._host_depths, self._depths),
        ):
            there.copy_(here, non_blocking=True)

    def run(self) -> Tensor:
        """Logits (rows, V); the next run overwrites them."""
        if self._model.device.type != "cuda":
            return self._forward()
        if self._replay is None:
            self._capture()
        assert self._replay is not None and self._logits is not None
        self._replay()
        return self._logits

    def _forward(self) -> Tensor:
        tokens, positions, _ = self._numbers
        block = Block(0, None, self._seen[None], (positions[:, None] - self._depths)[None])
        return self._model.logits(self._model.hidden(tokens, positions, Layout(lambda _: [block], store=self)))

    def extend(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        keys, values, slots = self._memory.keys[layer], self._memory.values[layer], self._numbers[2]
        keys.index_copy_(0, slots, key)
        values.index_copy_(0, slots, value)
        return keys[: self._span], values[: self._span]

    def _capture(self) -> None:
        """Runs once on a stream of its own, as libraries set themselves up at their first call, and captures the second run."""
        stream, here = torch.cuda.Stream(), torch.cuda.current_stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(here)
        with torch.cuda.stream(stream):
            self._forward()
        here.wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._logits = self._forward()
        self._replay = graph.replay
