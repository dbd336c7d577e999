"""The rows of a forward over the cache in blocks of neighbours, which share most of what they see."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from mmc.trie.attention import BLOCK_ROWS, BLOCK_ROWS_ON_CUDA, Block, padded_keys
from mmc.trie.lanes import Standing

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
BLOCK_PAIRS = 2048
"""What one more block costs, in (row, key) pairs of attention: an estimate, which need not be close."""
BLOCK_PAIRS_ON_CUDA = 1_000_000
"""There: some launches a layer."""


@dataclass
class Piece:
    """Neighbouring rows of a forward that see one path: but of its last ``own`` tokens, each only those up to itself."""

    path: Ints
    start: int
    """The first of its rows."""
    rows: int
    own: int
    """As many as rows; or 0: the row's own token is elsewhere."""
    standing: Standing | None = None
    """In a lane, where the rest of what it sees is."""

    def part(self, first: int, last: int) -> Piece:
        """Some of the rows, with as much of the path as they see."""
        if not self.own:
            return self
        end = len(self.path) - self.own + last
        return Piece(self.path[:end], self.start + first, last - first, last - first)


def blocks_of(pieces: Sequence[Piece], positions: Ints, used: int, device: torch.device) -> list[Block]:
    """Neighbours in blocks: a row joins when that costs fewer (row, key) pairs than a block of its own.

    ``positions`` of the tokens in all slots; the first ``used`` slots are those that were ever in use.
    """
    most, pairs = (BLOCK_ROWS_ON_CUDA, BLOCK_PAIRS_ON_CUDA) if device.type == "cuda" else (BLOCK_ROWS, BLOCK_PAIRS)
    blocks: list[Block] = []
    taken: list[Piece] = []
    seen = np.zeros(len(positions), dtype=bool)
    size, keys = 0, 0

    def close() -> None:
        nonlocal size, keys, taken
        if taken:
            blocks.append(_block(taken, seen, positions, used, device))
        seen[:] = False
        size, keys, taken = 0, 0, []

    for piece in pieces:
        if not len(piece.path):
            close()  # nothing outside its lane; and a block's rows are neighbours
        done = 0 if len(piece.path) else piece.rows
        while done < piece.rows:
            take = min(most - size, piece.rows - done)
            part = piece.part(done, done + take)
            new = len(part.path) - int(np.count_nonzero(seen[part.path]))
            if size and take * (keys + new) + size * new > take * len(part.path) + pairs:
                close()
                continue
            seen[part.path] = True
            taken.append(part)
            done, size, keys = done + take, size + take, keys + new
            if size == most:
                close()
    close()
    return blocks


def _block(pieces: Sequence[Piece], seen: Bools, positions: Ints, used: int, device: torch.device) -> Block:
    """The block made of ``pieces``. ``seen`` marks the slots of their paths."""
    size = sum(piece.rows for piece in pieces)
    keys = np.flatnonzero(seen)
    rank = np.cumsum(seen) - 1
    # Often all streams are one block and their paths all that is cached: then nothing needs to be gathered.
    whole = len(keys) == used
    keys_BK = keys[None] if whole else padded_keys([keys], device)[0]
    mask = np.zeros((size, keys_BK.shape[1]), dtype=bool)
    rows_at = np.empty(size, dtype=np.int64)
    row = 0
    for piece in pieces:
        rows, before = slice(row, row + piece.rows), len(piece.path) - piece.own
        mask[rows, rank[piece.path[:before]]] = True
        if piece.own:
            mask[rows, rank[piece.path[before:]]] = np.tri(piece.rows, dtype=bool)
        last = len(piece.path) - 1 if piece.standing is None else piece.standing.position
        rows_at[rows] = last - np.arange(piece.rows)[::-1]
        row += piece.rows
    distance = rows_at[:, None] - positions[keys_BK[0]]
    mask_BRK, distance_BRK = (torch.from_numpy(a[None]).to(device) for a in (mask, distance))
    known = None if whole else torch.from_numpy(keys_BK).to(device)
    return Block(pieces[0].start, known, mask_BRK, distance_BRK)
