"""Cuts a batch for several workers: what shares a beginning stays together, and the largest part is as small as can be.

The sum of the parts' gradients is the batch's: the weight of a token in the loss is that of the whole batch, and no call is cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Protocol, TypeVar

from mmc.trie.logprobs import Sampled
from mmc.trie.pack import common_prefix, sort_order


class Trained(Protocol):
    """A completion that an adapter is trained on."""

    @property
    def adapter(self) -> str: ...

    @property
    def sampled(self) -> Sampled: ...


T = TypeVar("T", bound=Trained)


def cut(batch: Sequence[T], parts: int) -> list[list[T]]:
    """``batch`` in ``parts`` parts, some of them empty where there is less to do than workers."""
    adapters = {name: -1 - number for number, name in enumerate(dict.fromkeys(one.adapter for one in batch))}
    places = cut_sequences([[adapters[one.adapter], *one.sampled.needed] for one in batch], parts)
    return [[batch[i] for i in sorted(part)] for part in places]


def cut_sequences(sequences: Sequence[Sequence[int]], parts: int) -> list[list[int]]:
    """Indices of ``sequences`` in ``parts`` runs of their lexicographic order; the most distinct tokens in one are the fewest
    possible.
    """
    order = sort_order(sequences)
    lengths = [len(sequences[s]) for s in order]
    shared = [0, *(common_prefix(sequences[a], sequences[b]) for a, b in pairwise(order))]
    low, high = max(lengths, default=0), sum(lengths)
    while low < high:
        middle = (low + high) // 2
        if len(_filled(lengths, shared, middle)) <= parts:
            high = middle
        else:
            low = middle + 1
    found = [[order[i] for i in run] for run in _filled(lengths, shared, low)]
    return [*found, *([] for _ in range(parts - len(found)))]


def _filled(lengths: Sequence[int], shared: Sequence[int], most: int) -> list[range]:
    """Runs of at most ``most`` distinct tokens each, every one as long as it can be."""
    runs: list[range] = []
    start = size = 0
    for i, length in enumerate(lengths):
        if i > start and size + length - shared[i] > most:
            runs.append(range(start, i))
            start, size = i, length
        else:
            size += length - (shared[i] if i > start else 0)
    return [*runs, range(start, len(lengths))] if lengths else []
