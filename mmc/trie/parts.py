"""A forest over its budget, cut into parts: what parts share is computed once, and goes backward once.

Sequences in lexicographic order share across a cut exactly the common beginning of its two neighbours. It is computed by
itself; its keys, values and hidden states then stand as leaves in every part that needs them, whose backward passes add up
their gradient, and it goes backward with that when the last of these parts is done. Kept at a time are only the beginnings
that the cuts on either side of a part share: nodes of this part, so it stays within the budget.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmc.trie.attention import forest_layout
from mmc.trie.head import chosen_logprobs
from mmc.trie.logprobs import Sampled, free_logprobs, free_tokens
from mmc.trie.model import CausalModel, TrieModel
from mmc.trie.pack import Forest, common_prefix, pack, split_by_budget
from mmc.trie.padded import padded_groups

WORTH = 64
"""Tokens that are worth a forward and backward of their own; fewer are computed again in the next part."""

Nodes = NDArray[np.int64]


@dataclass(frozen=True)
class Part:
    """Some of the samples: their indices, log-probabilities (F,) with gradient and entropies (F,), one after the other."""

    members: list[int]
    logprobs_F: Tensor
    entropies_F: Tensor
    computed: int
    """Nodes computed for it, beginnings that it is the first to need among them."""


def in_parts(model: CausalModel, samples: Sequence[Sampled], budget: int | None) -> Iterator[Part]:
    """All ``samples`` (each with a free token), in parts that compute or attend to at most ``budget`` tokens each, unless a
    sample alone has more; None: in one.

    A part must have gone backward when the next is asked for, and all must be asked for: shared beginnings go backward in
    between and at the end.
    """
    if isinstance(model, TrieModel):
        yield from _of_forest(model, samples, budget)
        return
    for group in padded_groups([len(sample.needed) for sample in samples], budget):
        yield Part(group, *free_logprobs(model, [samples[i] for i in group]))


def _of_forest(model: TrieModel, samples: Sequence[Sampled], budget: int | None) -> Iterator[Part]:
    sequences = [sample.needed for sample in samples]
    if not sequences:
        return
    groups = split_by_budget(sequences, budget) if budget is not None else [list(range(len(sequences)))]
    cuts = [common_prefix(sequences[left[-1]], sequences[right[0]]) for left, right in pairwise(groups)]
    kept: list[_Beginning] = []
    depth = 0
    for number, group in enumerate(groups):
        first, last = sequences[group[0]], sequences[group[-1]]
        further = cuts[number] if number < len(cuts) else 0
        stays = min(depth, common_prefix(first, last), further)
        further = further if further - stays >= WORTH else stays
        # The left cut's beginning is there. The right one's, where it goes on alone, is computed now.
        longer = [one for one in kept if one.start < stays]
        for start, end in pairwise(_pieces(stays, further, cuts[number + 1 :])):
            longer.append(_begin(model, last[:end], start, _path(longer, start)))
        new = [one for one in longer if one.start >= stays]
        forest = pack([sequences[i] for i in group])
        known = np.concatenate([forest.index_SL[0, :depth], forest.index_SL[-1, stays:further]])
        context = [*_path(kept, depth), *_path(new, further)]
        yield _part(model, [samples[i] for i in group], group, forest, known, context, further - stays)
        for done in reversed([one for one in kept if one.start >= stays]):
            done.backward()
        kept, depth = longer, further


def _pieces(start: int, end: int, later: Sequence[int]) -> list[int]:
    """Where to divide the tokens ``start`` to ``end`` of a beginning, both ends among the found: there where ``later`` cuts
    need no more of them. So what is kept is needed, but for some tokens less than are worth a piece.
    """
    if start == end:
        return []
    found = [end]
    for needed in np.minimum.accumulate(np.asarray(later, dtype=np.int64)).tolist() if later else ():
        if needed - start < WORTH:
            break
        if found[-1] - needed >= WORTH:
            found.append(needed)
    return [start, *reversed(found)]


@dataclass(frozen=True)
class _Beginning:
    """Tokens ``start`` and on of a path that several parts need, computed with gradient; and what stands for them there."""

    start: int
    computed: list[Tensor]
    """Hidden states (n, H), then keys and values (n, heads, D) of each layer."""
    leaves: list[Tensor]

    def backward(self) -> None:
        """Takes the gradient that the leaves have gathered on."""
        pairs = [
            (one, leaf.grad) for one, leaf in zip(self.computed, self.leaves, strict=True) if leaf.grad is not None
        ]
        if pairs:
            torch.autograd.backward([one for one, _ in pairs], [gradient for _, gradient in pairs])


Context = Sequence[tuple[_Beginning, int]]
"""Beginnings whose tokens a forward attends to, and how many tokens of each, from its start."""


def _path(beginnings: Sequence[_Beginning], end: int) -> list[tuple[_Beginning, int]]:
    """The tokens up to depth ``end``: each beginning up to where the next one starts."""
    stops = [*(one.start for one in beginnings[1:]), end]
    return [(one, stop - one.start) for one, stop in zip(beginnings, stops, strict=False)]


@dataclass
class _Store:
    """Puts the context's keys and values before those of a forward, and remembers the latter. A KeyValueStore."""

    context: Context
    own: list[Tensor] = field(default_factory=list)

    def extend(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        self.own += [key, value]
        return self._after(2 * layer + 1, key), self._after(2 * layer + 2, value)

    def _after(self, place: int, own: Tensor) -> Tensor:
        before = [one.leaves[place][:count] for one, count in self.context]
        return torch.cat([*before, own]) if before else own


def _begin(model: TrieModel, tokens: Sequence[int], start: int, context: Context) -> _Beginning:
    """Computes ``tokens`` from ``start`` on; ``context`` holds those before."""
    store = _Store(context)
    hidden_NH, _ = _forward(model, pack([tokens]), np.arange(start), store)
    computed = [hidden_NH, *store.own]
    leaves = [tensor.detach().requires_grad_(tensor.requires_grad) for tensor in computed]
    return _Beginning(start, computed, leaves)


def _forward(model: TrieModel, forest: Forest, known: Nodes, store: _Store) -> tuple[Tensor, Nodes]:
    """Hidden states of the nodes that are not ``known`` (in the order of the context); all nodes, known ones first."""
    layout = forest_layout(forest, model.device, known, store)
    assert layout.spans is not None
    own, nodes = layout.spans.rows_R, layout.spans.nodes_M
    if not len(own):
        return model.head.weight.new_empty(0, model.head.weight.shape[1]), nodes
    tokens, positions = torch.from_numpy(forest.tokens_N[own]), torch.from_numpy(forest.positions_N[own])
    return model.hidden(tokens, positions, layout), nodes


def _part(
    model: TrieModel,
    samples: Sequence[Sampled],
    members: list[int],
    forest: Forest,
    known: Nodes,
    context: Context,
    begun: int,
) -> Part:
    hidden_NH, nodes = _forward(model, forest, known, _Store(context))
    place_N = np.argsort(nodes)
    free = free_tokens(samples, forest.index_SL, place_N)
    hidden_MH = torch.cat([*(one.leaves[0][:count] for one, count in context), hidden_NH])
    return Part(members, *chosen_logprobs(model, hidden_MH, free), len(hidden_NH) + begun)
