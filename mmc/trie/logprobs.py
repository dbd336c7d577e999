"""Log-probabilities of sampled tokens, with gradient.

One forward over all prompts and completions gives what one forward a sequence would give; logits are computed only where
they predict a token somebody sampled by choice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mmc.trie.head import FreeTokens, chosen_logprobs
from mmc.trie.model import CausalModel
from mmc.trie.pack import Ints


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


def free_logprobs(model: CausalModel, samples: Sequence[Sampled]) -> tuple[Tensor, Tensor, int]:
    """Log-probabilities of all free tokens of ``samples``, one after the other, float32.

    Returns (logprobs (F,), entropies (F,), tokens computed). Log-probabilities are those of the distribution the tokens were
    drawn from: temperature and allowed sets applied. Every sample needs a free token.
    """
    hidden_NH, index_SL, computed = model.hidden_of([s.needed for s in samples])
    return *chosen_logprobs(model, hidden_NH, free_tokens(samples, index_SL)), computed


def free_tokens(samples: Sequence[Sampled], index_SL: Ints, place_N: Ints | None = None) -> FreeTokens:
    """For every free token: the node that predicts it, its id, its temperature and its allowed set.

    ``index_SL`` as in a forest; ``place_N`` tells where a node's hidden state lies, if not at the node's own number.
    """
    rows: list[int] = []
    targets: list[int] = []
    temperatures: list[float] = []
    allowed: list[NDArray[np.int32] | None] = []
    for s, sample in enumerate(samples):
        free = sample.free_T
        rows += index_SL[s, len(sample.prompt_ids) - 1 + np.array(free)].tolist()
        targets += [sample.ids_T[t] for t in free]
        temperatures += [sample.temperature or 1.0] * len(free)
        allowed += [sample.allowed_T[t] for t in free]
    places_F = np.array(rows) if place_N is None else place_N[rows]
    return FreeTokens(places_F, np.array(targets), np.array(temperatures, dtype=np.float32), allowed)
