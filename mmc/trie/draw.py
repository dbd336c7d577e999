"""Draws of tokens from logits: inverse-CDF on a uniform number that the caller brings.

A whole vocabulary is weighed in blocks: a draw first finds its block, then its token in there. So only the blocks' sums
are ever accumulated in float64, not every token's weight. All draws of one forward are made together, where the logits lie.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_BLOCK = 256
"""Tokens a block."""


class Pick(NamedTuple):
    """How one token is drawn: from ``row`` of the logits at ``temperature`` (> 0), among the ``allowed`` ids, all when None.

    ``uniform`` in [0, 1) is where the cumulative distribution is inverted; None takes the likeliest token.
    """

    row: int
    temperature: float
    uniform: float | None
    allowed: NDArray[np.int32] | None = None


def draw(logits_UV: Tensor, picks: Sequence[Pick]) -> list[tuple[int, float]]:
    """A token and its log-probability for each of ``picks``, from rows of float32 logits (U, vocabulary) on any device."""
    free = [pick for pick in picks if pick.allowed is None]
    found = iter(_from_all(logits_UV, free) if free else [])
    here_UV = logits_UV if len(free) == len(picks) else logits_UV.cpu()
    return [next(found) if pick.allowed is None else _from_some(here_UV[pick.row], pick) for pick in picks]


def _from_some(logits_V: Tensor, pick: Pick) -> tuple[int, float]:
    """Among the ids that ``pick`` allows; these are few."""
    assert pick.allowed is not None
    logprobs = torch.log_softmax(logits_V[torch.from_numpy(pick.allowed.astype(np.int64))] / pick.temperature, dim=-1)
    known = logprobs.numpy()
    if pick.uniform is None:
        index = int(np.argmax(known))
    else:
        cumulative = np.cumsum(np.exp(known.astype(np.float64)))
        index = min(int(np.searchsorted(cumulative, pick.uniform * cumulative[-1], side="right")), len(known) - 1)
    return int(pick.allowed[index]), float(known[index])


def _from_all(logits_UV: Tensor, picks: Sequence[Pick]) -> list[tuple[int, float]]:
    """For S picks among all tokens. Each of their P pairs of a row and a temperature is weighed once."""
    device = logits_UV.device
    pairs = {pair: number for number, pair in enumerate(dict.fromkeys((pick.row, pick.temperature) for pick in picks))}
    pair_S = torch.tensor([pairs[pick.row, pick.temperature] for pick in picks], device=device)
    uniforms = [-1.0 if pick.uniform is None else pick.uniform for pick in picks]
    uniforms_S1 = torch.tensor(uniforms, dtype=torch.float64, device=device)[:, None]
    rows_P, temperatures_P = zip(*pairs, strict=True)
    # Most often all rows, once each: these need no copy.
    given_PV = logits_UV if rows_P == tuple(range(len(logits_UV))) else logits_UV[torch.tensor(rows_P, device=device)]
    shifted_PV = given_PV / torch.tensor(temperatures_P, device=device)[:, None]
    if unfilled := -shifted_PV.shape[1] % _BLOCK:
        shifted_PV = torch.nn.functional.pad(shifted_PV, (0, unfilled), value=-torch.inf)
    top_P1, best_P1 = shifted_PV.max(dim=-1, keepdim=True)
    shifted_PV -= top_P1
    weights_PBK = shifted_PV.exp().view(len(pairs), -1, _BLOCK)
    cumulative_SB = weights_PBK.sum(dim=-1).double().cumsum(dim=-1)[pair_S]
    total_S1 = cumulative_SB[:, -1:]
    target_S1 = torch.minimum(uniforms_S1 * total_S1, torch.nextafter(total_S1, torch.zeros_like(total_S1)))
    block_S1 = torch.searchsorted(cumulative_SB, target_S1, right=True).clamp(max=cumulative_SB.shape[1] - 1)
    before_S1 = torch.where(block_S1 > 0, cumulative_SB.gather(1, (block_S1 - 1).clamp(min=0)), 0.0)
    weights_SK = weights_PBK[pair_S, block_S1[:, 0]].double()
    index_S1 = torch.searchsorted(weights_SK.cumsum(dim=-1), target_S1 - before_S1, right=True)
    # The block's own sum was rounded in float32; past its end lies its last token that can be drawn.
    places_K = torch.arange(_BLOCK, device=device)
    last_S1 = torch.where(weights_SK > 0, places_K, 0).amax(dim=-1, keepdim=True)
    drawn_S1 = block_S1 * _BLOCK + torch.minimum(index_S1, last_S1)
    token_S1 = torch.where(uniforms_S1 < 0, best_P1[pair_S], drawn_S1)
    logprob_S1 = shifted_PV[pair_S[:, None], token_S1].double() - total_S1.log()
    numbers = torch.cat([token_S1.double(), logprob_S1], dim=1).tolist()
    return [(int(token), logprob) for token, logprob in numbers]
