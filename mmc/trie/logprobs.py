"""Log-probabilities of sampled tokens over a packed forest, with gradient.

One forward over the forest of all prompts and completions gives what one forward a sequence would give; logits are computed
only at nodes that predict a token somebody sampled by choice, a bounded number of rows at a time, and again in the
backward instead of being kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mmc.trie.attention import forest_layout
from mmc.trie.model import TrieModel
from mmc.trie.pack import Forest, pack

HEAD_ROWS = 512
"""Rows whose logits exist at a time."""


@dataclass(frozen=True)
class Sampled:
    """One sampled completion: the token ids of prompt and completion, and how the completion was drawn.

    ``allowed_T`` as in a completion: None where every token was allowed, one id where the token was forced.
    """

    prompt_ids: Sequence[int]
    ids_T: Sequence[int]
    allowed_T: Sequence[NDArray[np.int32] | None]
    temperature: float = 1.0

    @property
    def free_T(self) -> list[int]:
        """Positions of the tokens that were sampled by choice: those that carry gradient."""
        return [t for t, allowed in enumerate(self.allowed_T) if allowed is None or len(allowed) > 1]

    @property
    def needed(self) -> list[int]:
        """The tokens that must be fed to predict the last free one."""
        free = self.free_T
        return [*self.prompt_ids, *self.ids_T[: free[-1]]] if free else []


def free_logprobs(model: TrieModel, samples: Sequence[Sampled]) -> tuple[Tensor, Tensor, int]:
    """Log-probabilities of all free tokens of ``samples``, one after the other, float32.

    Returns (logprobs (F,), entropies (F,), nodes computed). Log-probabilities are those of the distribution the tokens were
    drawn from: temperature and allowed sets applied. Every sample needs a free token.
    """
    forest = pack([s.needed for s in samples])
    rows_F, targets_F, temperatures_F, allowed_F = _targets(samples, forest)
    device = model.device
    hidden_NH = model.hidden(
        torch.from_numpy(forest.tokens_N), torch.from_numpy(forest.positions_N), forest_layout(forest, device)
    )
    order = np.argsort(rows_F, kind="stable")
    logprobs: list[Tensor] = []
    entropies: list[Tensor] = []
    for start in range(0, len(order), HEAD_ROWS):
        part = order[start : start + HEAD_ROWS]
        unique, inverse = np.unique(rows_F[part], return_inverse=True)
        head = _Head(model, inverse, targets_F[part], temperatures_F[part], [allowed_F[i] for i in part])
        chosen, entropy = checkpoint(head, hidden_NH[torch.from_numpy(unique).to(device)], use_reentrant=False)
        logprobs.append(chosen)
        entropies.append(entropy)
    back = torch.from_numpy(np.argsort(order, kind="stable")).to(device)
    return torch.cat(logprobs)[back], torch.cat(entropies)[back].detach(), len(forest)


def _targets(
    samples: Sequence[Sampled], forest: Forest
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32], list[NDArray[np.int32] | None]]:
    """For every free token: the node that predicts it, its id, its temperature and its allowed set."""
    rows: list[int] = []
    targets: list[int] = []
    temperatures: list[float] = []
    allowed: list[NDArray[np.int32] | None] = []
    for s, sample in enumerate(samples):
        free = sample.free_T
        rows += forest.index_SL[s, len(sample.prompt_ids) - 1 + np.array(free)].tolist()
        targets += [sample.ids_T[t] for t in free]
        temperatures += [sample.temperature or 1.0] * len(free)
        allowed += [sample.allowed_T[t] for t in free]
    return np.array(rows), np.array(targets), np.array(temperatures, dtype=np.float32), allowed


class _Head:
    """Logits, temperature, allowed sets and the chosen tokens of one part; recomputed in the backward."""

    def __init__(
        self,
        model: TrieModel,
        inverse: NDArray[np.int64],
        targets: NDArray[np.int64],
        temperatures: NDArray[np.float32],
        allowed: Sequence[NDArray[np.int32] | None],
    ) -> None:
        device = model.device
        self._model = model
        self._inverse = torch.from_numpy(inverse).to(device)
        self._targets = torch.from_numpy(targets).to(device)
        self._temperatures = torch.from_numpy(temperatures).to(device)
        self._whole = torch.tensor([i for i, a in enumerate(allowed) if a is None], dtype=torch.long, device=device)
        self._some = torch.tensor([i for i, a in enumerate(allowed) if a is not None], dtype=torch.long, device=device)
        sets = [a for a in allowed if a is not None]
        width = max(map(len, sets), default=0)
        self._sets = torch.zeros(len(sets), width, dtype=torch.long, device=device)
        self._padding = torch.ones(len(sets), width, dtype=torch.bool, device=device)
        for i, ids in enumerate(sets):
            self._sets[i, : len(ids)] = torch.from_numpy(ids.astype(np.int64))
            self._padding[i, : len(ids)] = False

    def __call__(self, hidden_UH: Tensor) -> tuple[Tensor, Tensor]:
        logits_UV = self._model.logits(hidden_UH)
        chosen = torch.empty(len(self._targets), device=logits_UV.device)
        entropy = torch.empty_like(chosen)
        for index, logprobs, targets in (*self._unconstrained(logits_UV), *self._constrained(logits_UV)):
            chosen = chosen.index_copy(0, index, logprobs.gather(1, targets[:, None])[:, 0])
            plain = logprobs.detach()
            entropy[index] = -(plain.exp() * plain.clamp(min=-1e9)).sum(dim=-1)
        return chosen, entropy

    def _unconstrained(self, logits_UV: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
        if not len(self._whole):
            return []
        logits = logits_UV[self._inverse[self._whole]] / self._temperatures[self._whole, None]
        return [(self._whole, torch.log_softmax(logits, dim=-1), self._targets[self._whole])]

    def _constrained(self, logits_UV: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
        if not len(self._some):
            return []
        logits = logits_UV[self._inverse[self._some, None], self._sets] / self._temperatures[self._some, None]
        logprobs = torch.log_softmax(logits.masked_fill(self._padding, -torch.inf), dim=-1)
        same = (self._sets == self._targets[self._some, None]) & ~self._padding
        return [(self._some, logprobs, same.int().argmax(dim=1))]
