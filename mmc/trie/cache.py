"""Keys and values of a growing forest: a radix tree whose segments own slots of one flat memory a layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmc.trie.attention import BLOCK_ROWS, BLOCK_ROWS_ON_CUDA, Block, Layout, padded_keys
from mmc.trie.fixed import CacheMemory

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
BLOCK_PAIRS = 2048
"""What one more block costs, in (row, key) pairs of attention: an estimate, which need not be close."""
BLOCK_PAIRS_ON_CUDA = 1_000_000
"""There: some launches a layer."""
_EMPTY: Ints = np.empty(0, dtype=np.int64)


@dataclass(eq=False)
class Segment:
    """A run of tokens without a branch. ``path`` holds the slots from the root to its last token, itself included."""

    parent: Segment | None
    tokens: Ints
    path: Ints
    children: dict[int, Segment] = field(default_factory=dict)
    users: int = 0
    """Children plus the streams that stand at its end; a segment without users is freed."""
    fresh: bool = True
    """Not computed yet."""

    @property
    def slots(self) -> Ints:
        return self.path[len(self.path) - len(self.tokens) :]


class TrieCache:
    """The radix tree and its slots. Implements :class:`mmc.trie.attention.KeyValueStore` for the rows of one forward."""

    def __init__(self, device: torch.device, memory: CacheMemory) -> None:
        self.memory, capacity = memory, memory.capacity
        self.root = Segment(None, _EMPTY, _EMPTY, users=1, fresh=False)
        self._device = device
        self._block_rows = BLOCK_ROWS_ON_CUDA if device.type == "cuda" else BLOCK_ROWS
        self._block_pairs = BLOCK_PAIRS_ON_CUDA if device.type == "cuda" else BLOCK_PAIRS
        self._free = list(range(capacity - 1, -1, -1))
        self._capacity = capacity
        self.positions = np.zeros(capacity, dtype=np.int64)
        """Of the token in each slot."""
        self.highest = -1
        """The highest slot that was ever in use."""
        self._rows: Tensor = torch.empty(0, dtype=torch.long)

    @property
    def used(self) -> int:
        """Slots in use."""
        return self._capacity - len(self._free)

    @cached_property
    def spare(self) -> int:
        """A slot that no token has."""
        return int(self._allocate(1)[0])

    # --- the tree ---

    def insert(self, start: Segment, tokens: Sequence[int]) -> tuple[Segment, list[Segment]]:
        """Walks from ``start`` along ``tokens``, adding what is not there. Gives the last segment and the added ones.

        The last token is always computed anew unless it is still to be computed anyway: its logits are needed.
        """
        rest = np.asarray(tokens, dtype=np.int64)
        here, added = start, list[Segment]()
        while len(rest):
            child = here.children.get(int(rest[0]))
            if child is None:
                break
            n = min(len(rest), len(child.tokens))
            different = np.flatnonzero(rest[:n] != child.tokens[:n])
            shared = int(different[0]) if len(different) else n
            if shared == len(rest) and not child.fresh:
                shared -= 1
            if shared == 0:
                break
            if shared < len(child.tokens):
                upper = self._split(child, shared)
                if child.fresh:
                    added.append(upper)
                child = upper
            here, rest = child, rest[shared:]
        if len(rest):
            here = self._add(here, rest)
            added.append(here)
        return here, added

    def matched(self, tokens: Sequence[int]) -> int:
        """How many of ``tokens`` stand in the tree already."""
        rest, here, count = np.asarray(tokens, dtype=np.int64), self.root, 0
        while len(rest) and (child := here.children.get(int(rest[0]))) is not None:
            n = min(len(rest), len(child.tokens))
            different = np.flatnonzero(rest[:n] != child.tokens[:n])
            shared = int(different[0]) if len(different) else n
            count += shared
            if shared < len(child.tokens):
                break
            here, rest = child, rest[shared:]
        return count

    def hold(self, segment: Segment) -> None:
        """A stream stands at the end of ``segment`` now."""
        segment.users += 1

    def release(self, segment: Segment) -> None:
        """A stream left ``segment``; frees what nobody uses any more, up to the root."""
        node: Segment | None = segment
        while node is not None:
            node.users -= 1
            if node.users or node.parent is None:
                return
            self._free.extend(node.slots[::-1].tolist())
            if node.parent.children.get(int(node.tokens[0])) is node:
                del node.parent.children[int(node.tokens[0])]
            node = node.parent

    def _add(self, parent: Segment, tokens: Ints) -> Segment:
        slots = self._allocate(len(tokens))
        self.positions[slots] = len(parent.path) + np.arange(len(tokens))
        segment = Segment(parent, tokens, np.concatenate([parent.path, slots]))
        parent.children[int(tokens[0])] = segment
        parent.users += 1
        return segment

    def _split(self, segment: Segment, at: int) -> Segment:
        """Puts a new segment with the first ``at`` tokens above ``segment``, which keeps the rest."""
        parent = segment.parent
        assert parent is not None
        cut = len(segment.path) - len(segment.tokens) + at
        upper = Segment(parent, segment.tokens[:at], segment.path[:cut], users=1, fresh=segment.fresh)
        if parent.children.get(int(segment.tokens[0])) is segment:
            parent.children[int(segment.tokens[0])] = upper
        segment.parent, segment.tokens = upper, segment.tokens[at:]
        upper.children[int(segment.tokens[0])] = segment
        return upper

    # --- the slots ---

    def _allocate(self, count: int) -> Ints:
        while len(self._free) < count:
            self._grow()
        slots = np.array([self._free.pop() for _ in range(count)], dtype=np.int64)
        self.highest = max(self.highest, int(slots.max(initial=-1)))
        return slots

    def _grow(self) -> None:
        old, self._capacity = self._capacity, self._capacity * 2
        self._free = list(range(self._capacity - 1, old - 1, -1)) + self._free
        self.positions = np.concatenate([self.positions, np.zeros(old, dtype=np.int64)])
        self.memory = self.memory.grown()

    def extend(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Stores the keys and values (N, H, D) of the rows laid out last; gives those of all slots that were ever in use."""
        self.memory.room_for(layer, key, value)
        keys, values = self.memory.keys[layer], self.memory.values[layer]
        keys[self._rows] = key
        values[self._rows] = value
        return keys[: self.highest + 1], values[: self.highest + 1]

    # --- one forward ---

    def layout(self, segments: Sequence[Segment]) -> tuple[Tensor, Tensor, Layout]:
        """Tokens, positions and layout of a forward that computes ``segments``, and marks them computed.

        Their rows come in the order of ``segments``, so neighbours should be relatives.
        """
        slots = np.concatenate([s.slots for s in segments])
        blocks = self._blocks(segments)
        for segment in segments:
            segment.fresh = False
        self._rows = torch.from_numpy(slots).to(self._device)
        tokens = torch.from_numpy(np.concatenate([s.tokens for s in segments]))
        return tokens, torch.from_numpy(self.positions[slots]), Layout(lambda _: blocks, store=self)

    def _blocks(self, segments: Sequence[Segment]) -> list[Block]:
        """Neighbours in blocks: a row joins when that costs fewer (row, key) pairs than a block of its own."""
        blocks: list[Block] = []
        pieces: list[tuple[Segment, int, int]] = []
        seen = np.zeros(self._capacity, dtype=bool)
        start, size, keys = 0, 0, 0

        def close() -> None:
            nonlocal start, size, keys, pieces
            if pieces:
                blocks.append(self._block(start, size, pieces, seen))
            seen[:] = False
            start, size, keys, pieces = start + size, 0, 0, []

        for segment in segments:
            done, before = 0, len(segment.path) - len(segment.tokens)
            while done < len(segment.tokens):
                take = min(self._block_rows - size, len(segment.tokens) - done)
                path = segment.path[: before + done + take]
                new = len(path) - int(np.count_nonzero(seen[path]))
                if size and take * (keys + new) + size * new > take * len(path) + self._block_pairs:
                    close()
                    continue
                seen[path] = True
                pieces.append((segment, done, done + take))
                done, size, keys = done + take, size + take, keys + new
                if size == self._block_rows:
                    close()
        close()
        return blocks

    def _block(self, start: int, size: int, pieces: Sequence[tuple[Segment, int, int]], seen: Bools) -> Block:
        """The block of ``size`` rows made of ``pieces``: (segment, first token, one past the last). ``seen`` marks the slots
        of their paths.
        """
        keys = np.flatnonzero(seen)
        rank = np.cumsum(seen) - 1
        # Often all streams are one block and their paths all that is cached: then nothing needs to be gathered.
        whole = len(keys) > self.highest
        keys_BK = keys[None] if whole else padded_keys([keys], self._device)[0]
        mask = np.zeros((size, keys_BK.shape[1]), dtype=bool)
        positions = np.empty(size, dtype=np.int64)
        row = 0
        for segment, first, last in pieces:
            count, before = last - first, len(segment.path) - len(segment.tokens) + first
            mask[row : row + count, rank[segment.path[:before]]] = True
            own = rank[segment.path[before : before + count]]
            mask[row : row + count, own] = np.tri(count, dtype=bool)
            positions[row : row + count] = before + np.arange(count)
            row += count
        distance = positions[:, None] - self.positions[keys_BK[0]]
        mask_BRK, distance_BRK = (torch.from_numpy(a[None]).to(self._device) for a in (mask, distance))
        return Block(start, None if whole else torch.from_numpy(keys_BK).to(self._device), mask_BRK, distance_BRK)
