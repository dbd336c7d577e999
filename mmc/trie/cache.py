"""Keys and values of a growing forest: a radix tree whose segments own slots of one flat memory a layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from mmc.trie.attention import Layout
from mmc.trie.blocks import Ints, Piece, blocks_of
from mmc.trie.fixed import CacheMemory
from mmc.trie.lanes import (
    LANES_ON,
    LEAST_OWN,
    MOST_COPIED,
    WORTH_PAIRS,
    Lane,
    Places,
    Standing,
    batches,
    lanes_of,
    width_for,
)

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
    lane: Lane | None = None
    """That all its slots lie in."""

    @property
    def slots(self) -> Ints:
        return self.path[len(self.path) - len(self.tokens) :]

    @property
    def ending(self) -> Lane | None:
        """The lane that this segment is the end of: the path can go on in it while there is room."""
        return self.lane if self.lane is not None and self.lane.ends_at(int(self.path[-1])) else None

    @property
    def room(self) -> int:
        """Tokens that may come after it without taking another slot."""
        lane = self.ending
        return lane.room if lane is not None else 0


class TrieCache:
    """The radix tree and its slots. Implements :class:`mmc.trie.attention.KeyValueStore` for the rows of one forward."""

    def __init__(self, device: torch.device, memory: CacheMemory) -> None:
        self.memory, capacity = memory, memory.capacity
        self.root = Segment(None, _EMPTY, _EMPTY, users=1, fresh=False)
        self._device = device
        self._free = list(range(capacity - 1, -1, -1))
        self._capacity = capacity
        self.positions = np.zeros(capacity, dtype=np.int64)
        """Of the token in each slot."""
        self.highest = -1
        """The highest slot that was ever in use."""
        self._lanes: set[Lane] = set()
        self._rows: Tensor = torch.empty(0, dtype=torch.long)

    @property
    def used(self) -> int:
        """Tokens that are kept."""
        return self._capacity - len(self._free) - self.vacant

    @property
    def vacant(self) -> int:
        """Slots that are set aside in lanes."""
        return sum(lane.room for lane in self._lanes)

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
            self._give_back(node)
            if node.parent.children.get(int(node.tokens[0])) is node:
                del node.parent.children[int(node.tokens[0])]
            node = node.parent

    def _add(self, parent: Segment, tokens: Ints) -> Segment:
        lane = parent.ending if len(tokens) <= parent.room else None
        slots = self._allocate(len(tokens)) if lane is None else lane.take(len(tokens))
        self.positions[slots] = len(parent.path) + np.arange(len(tokens))
        segment = Segment(parent, tokens, np.concatenate([parent.path, slots]), lane=lane)
        if lane is not None:
            lane.segments += 1
        parent.children[int(tokens[0])] = segment
        parent.users += 1
        return segment

    def _split(self, segment: Segment, at: int) -> Segment:
        """Puts a new segment with the first ``at`` tokens above ``segment``, which keeps the rest."""
        parent = segment.parent
        assert parent is not None
        cut = len(segment.path) - len(segment.tokens) + at
        upper = Segment(
            parent, segment.tokens[:at], segment.path[:cut], users=1, fresh=segment.fresh, lane=segment.lane
        )
        if upper.lane is not None:
            upper.lane.segments += 1
        if parent.children.get(int(segment.tokens[0])) is segment:
            parent.children[int(segment.tokens[0])] = upper
        segment.parent, segment.tokens = upper, segment.tokens[at:]
        upper.children[int(segment.tokens[0])] = segment
        return upper

    # --- lanes ---

    def settle(self, ends: Sequence[Segment], room: int) -> None:
        """Moves what the paths to ``ends`` have for themselves, all of it computed, into lanes: where that saves more than it
        costs, and a path that outgrew its lane. ``room``: slots that there are for new lanes.
        """
        if self._device.type not in LANES_ON:
            return
        chains = {end: self._own(end) for end in dict.fromkeys(ends) if not end.room}
        sizes = {end: sum(len(one.tokens) for one in chain) for end, chain in chains.items()}
        worth = (len(set(ends)) - 1) * sum(size for size in sizes.values() if size >= LEAST_OWN) >= WORTH_PAIRS
        chosen: list[tuple[list[Segment], int, int]] = []
        for end, chain in chains.items():
            before = len(end.path) - sizes[end]
            copied = before if before <= MOST_COPIED else 0
            width = width_for(copied + sizes[end])
            if sizes[end] >= LEAST_OWN and width <= room and (worth or end.lane is not None):
                chosen.append((chain, copied, width))
                room -= width
        if not chosen:
            return
        lanes = self._new_lanes([width for _, _, width in chosen])
        sources, targets = [], []
        for (chain, copied, _), lane in zip(chosen, lanes, strict=True):
            lane.copied = copied
            sources.append(chain[0].path[-copied - sizes[chain[0]] :])
            targets.append(lane.take(len(sources[-1])))
        self._copy(np.concatenate(sources), np.concatenate(targets))
        for (chain, copied, _), lane, slots in zip(chosen, lanes, targets, strict=True):
            self._become_one(chain, lane, slots[copied:])

    def _become_one(self, chain: Sequence[Segment], lane: Lane, slots: Ints) -> None:
        """The first of ``chain`` takes the place of all, in the ``slots`` of a lane."""
        end, top = chain[0], chain[-1]
        parent = top.parent
        assert parent is not None
        tokens = np.concatenate([one.tokens for one in reversed(chain)])
        for one in chain:
            self._give_back(one)
        if parent.children.get(int(tokens[0])) is top:
            parent.children[int(tokens[0])] = end
        end.parent, end.tokens, end.path = parent, tokens, np.concatenate([parent.path, slots])
        end.lane, lane.segments = lane, 1

    def _copy(self, sources: Ints, targets: Ints) -> None:
        """Keys, values and positions of slots to others."""
        self.positions[targets] = self.positions[sources]
        here, there = (torch.from_numpy(slots).to(self._device) for slots in (sources, targets))
        held: dict[torch.Size, Tensor] = {}  # by shape: memory that is new costs more than to copy
        for memory in (*self.memory.keys, *self.memory.values):
            shape = memory.shape[1:]
            if shape not in held:
                held[shape] = memory.new_empty(len(here), *shape)
            torch.index_select(memory, 0, here, out=held[shape])
            memory.index_copy_(0, there, held[shape])

    def _new_lanes(self, widths: Sequence[int]) -> list[Lane]:
        """New lanes, each at a multiple of its width."""
        free = np.zeros(self._capacity, dtype=bool)
        free[self._free] = True
        lanes = []
        for number, width in enumerate(widths):
            whole = free[: len(free) // width * width].reshape(-1, width).all(axis=1)
            if not whole.any():
                self._grow(sum(widths[number:]) + width)  # one of them more, as they start at multiples
                free = np.concatenate([free, np.ones(self._capacity - len(free), dtype=bool)])
                whole = free[: len(free) // width * width].reshape(-1, width).all(axis=1)
            start = int(whole.argmax()) * width
            free[start : start + width] = False
            lanes.append(Lane(start, width))
            self.highest = max(self.highest, start + width - 1)
        self._free = np.flatnonzero(free)[::-1].tolist()
        self._lanes.update(lanes)
        return lanes

    def _own(self, end: Segment) -> list[Segment]:
        """The segments from ``end`` upwards that no other path has."""
        chain, node = [], end
        while node.parent is not None and node.users == 1:
            chain.append(node)
            node = node.parent
        return chain

    # --- the slots ---

    def _allocate(self, count: int) -> Ints:
        if len(self._free) < count:
            self._grow(count - len(self._free))
        slots = np.array([self._free.pop() for _ in range(count)], dtype=np.int64)
        self.highest = max(self.highest, int(slots.max(initial=-1)))
        return slots

    def _give_back(self, segment: Segment) -> None:
        """Its slots; those of a lane when all of it is unused."""
        lane = segment.lane
        if lane is None:
            self._free.extend(segment.slots[::-1].tolist())
            return
        lane.segments -= 1
        if not lane.segments:
            self._lanes.discard(lane)
            self._free.extend(range(lane.start + lane.width - 1, lane.start - 1, -1))
        elif lane.ends_at(int(segment.path[-1])):
            lane.filled -= len(segment.tokens)

    def _grow(self, count: int) -> None:
        """Doubles the memory until there are ``count`` slots more."""
        old = self._capacity
        while self._capacity < old + count:
            self._capacity *= 2
        self._free = list(range(self._capacity - 1, old - 1, -1)) + self._free
        self.positions = np.concatenate([self.positions, np.zeros(self._capacity - old, dtype=np.int64)])
        self.memory = self.memory.grown(self._capacity, self.highest + 1)

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
        pieces = self._pieces(segments)
        blocks = blocks_of(pieces, self.positions, self.highest + 1, self._device)
        for segment in segments:
            segment.fresh = False
        self._rows = torch.from_numpy(slots).to(self._device)
        tokens = torch.from_numpy(np.concatenate([s.tokens for s in segments]))
        standing = [one.standing for one in pieces if one.standing is not None]
        layout = Layout(lambda _: blocks, store=self)
        if standing:
            rows = batches(standing)
            layout.lanes = [lanes_of(batch, self.positions, self._device) for batch in rows]
            covered = [range(one.start, one.start + one.mask_BRK.shape[1]) for one in blocks]
            layout.places = Places.of(len(slots), rows, covered, self._device)
        return tokens, torch.from_numpy(self.positions[slots]), layout

    def _pieces(self, segments: Sequence[Segment]) -> list[Piece]:
        """What the rows of each segment see, and which of them stand in a lane."""
        pieces, start = [], 0
        for segment in segments:
            count = len(segment.tokens)
            piece = Piece(segment.path, start, count, count)
            lane = segment.ending
            if lane is not None and count == 1:
                piece.standing = Standing(start, lane, lane.filled, len(segment.path) - 1)
                before = len(segment.path) - (lane.filled - lane.copied)
                piece.path, piece.own = segment.path[: 0 if lane.copied else before], 0
            pieces.append(piece)
            start += count
        return pieces
