"""Packs sequences into a forest of their distinct prefixes.

Sorted sequences share with their left neighbour exactly what they share with anything before them; so the radix tree in
depth-first order is every sequence's tail beyond that common prefix, one after the other. In this order the
descendants of node j are the nodes j to ``ends_N[j]``; and j is an ancestor of i (or i itself) exactly when
``j <= i < ends_N[j]``. All of it is array operations over a (sequences x length) matrix.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Forest:
    """A forest of N distinct prefixes in depth-first order.

    ``tokens_N``, ``positions_N`` (depth, from 0) and ``ends_N`` (one past the last descendant) describe the nodes;
    ``index_SL[s, d]`` is the node that holds token d of sequence s (undefined past its length).
    """

    tokens_N: Ints
    positions_N: Ints
    ends_N: Ints
    index_SL: Ints

    def __len__(self) -> int:
        return len(self.tokens_N)


def _matrix(sequences: Sequence[Sequence[int]]) -> tuple[Ints, Ints]:
    """The sequences as rows padded with -1, and their lengths."""
    lengths_S = np.array([len(s) for s in sequences], dtype=np.int64)
    tokens_SL = np.full((len(sequences), int(lengths_S.max(initial=0))), -1, dtype=np.int64)
    tokens_SL[np.arange(tokens_SL.shape[1]) < lengths_S[:, None]] = np.concatenate(
        [np.asarray(s, dtype=np.int64) for s in sequences]
    )
    return tokens_SL, lengths_S


def sort_order(sequences: Sequence[Sequence[int]]) -> list[int]:
    """Indices of ``sequences`` in lexicographic order, ties in their own order."""
    return sorted(range(len(sequences)), key=lambda s: (tuple(sequences[s]), s))


def pack(sequences: Sequence[Sequence[int]]) -> Forest:
    """Packs S non-empty sequences; equal prefixes become one node, equal sequences one path.

    Raises ValueError when there is no sequence or one is empty.
    """
    if not sequences or not all(len(s) for s in sequences):
        raise ValueError("pack needs at least one sequence, and none may be empty")
    order = sort_order(sequences)
    tokens_SL, lengths_S = _matrix([sequences[s] for s in order])
    rows, width = tokens_SL.shape
    shared_S = np.zeros(rows, dtype=np.int64)
    same = (tokens_SL[1:] == tokens_SL[:-1]) & (tokens_SL[1:] >= 0)
    shared_S[1:] = np.cumprod(same, axis=1).sum(axis=1)
    starts_S = np.cumsum(lengths_S - shared_S) - (lengths_S - shared_S)
    total = int((lengths_S - shared_S).sum())

    depths_L = np.arange(width)
    new_SL = (depths_L >= shared_S[:, None]) & (depths_L < lengths_S[:, None])
    fresh_SL = np.where(new_SL, starts_S[:, None] + depths_L - shared_S[:, None], -1)
    # Nodes are numbered in sorted order, so the last one made at a depth is the greatest so far.
    index_SL = np.maximum.accumulate(fresh_SL, axis=0)

    # The subtree of a node at depth d ends where the next row begins that shares no more than d tokens.
    closes_SL = np.where(shared_S[:, None] <= depths_L, starts_S[:, None], total)
    next_SL = np.full((rows, width), total, dtype=np.int64)
    next_SL[:-1] = np.minimum.accumulate(closes_SL[::-1], axis=0)[::-1][1:]

    restored_SL = np.empty_like(index_SL)
    restored_SL[order] = index_SL
    return Forest(
        tokens_N=tokens_SL[new_SL],
        positions_N=np.broadcast_to(depths_L, new_SL.shape)[new_SL],
        ends_N=next_SL[new_SL],
        index_SL=restored_SL,
    )


def split_by_budget(sequences: Sequence[Sequence[int]], budget: int) -> list[list[int]]:
    """Groups of indices of ``sequences`` whose packed forests hold at most ``budget`` nodes each (or one sequence).

    Neighbours in lexicographic order stay together, so that little is computed twice.
    """
    order = sort_order(sequences)
    groups: list[list[int]] = []
    size = 0
    previous: tuple[int, ...] = ()
    for s in order:
        current = tuple(sequences[s])
        shared = common_prefix(previous, current) if groups else 0
        if groups and size + len(current) - shared <= budget:
            groups[-1].append(s)
            size += len(current) - shared
        else:
            groups.append([s])
            size = len(current)
        previous = current
    return groups


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens ``a`` and ``b`` share at their beginning."""
    n = min(len(a), len(b))
    different = np.nonzero(np.asarray(a[:n]) != np.asarray(b[:n]))[0]
    return int(different[0]) if len(different) else n
