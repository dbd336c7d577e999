"""Draws of tokens from logits: inverse-CDF on a uniform number that the caller brings.

A whole vocabulary is weighed in blocks: a draw first finds its block, then its token in there. So only the blocks' sums
are ever accumulated in float64, not every token's weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
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


class Distributions:
    """Next-token distributions from U rows of float32 logits (U, vocabulary), on any device."""

    def __init__(self, logits_UV: Tensor) -> None:
        self._given_UV = logits_UV
        self._whole: dict[float, _Whole] = {}

    @cached_property
    def _logits_UV(self) -> Tensor:
        return self._given_UV.cpu()

    def pick(self, pick: Pick) -> tuple[int, float]:
        """A token and its log-probability, computed on the CPU."""
        row, temperature, uniform, allowed = pick
        if allowed is None:
            if temperature not in self._whole:
                self._whole[temperature] = _Whole(self._logits_UV, temperature)
            whole = self._whole[temperature]
            token = whole.best(row) if uniform is None else whole.drawn(row, uniform)
            return token, whole.logprob(row, token)
        subset = self._logits_UV[row, torch.from_numpy(allowed.astype(np.int64))]
        logprobs = torch.log_softmax(subset / temperature, dim=-1).numpy()
        if uniform is None:
            index = int(np.argmax(logprobs))
        else:
            cumulative = np.cumsum(np.exp(logprobs.astype(np.float64)))
            index = min(int(np.searchsorted(cumulative, uniform * cumulative[-1], side="right")), len(logprobs) - 1)
        return int(allowed[index]), float(logprobs[index])

    def pick_all(self, picks: Sequence[Pick]) -> list[tuple[int, float]]:
        """One token and log-probability each. What is drawn from a whole vocabulary is drawn where the logits lie."""
        whole = [i for i, pick in enumerate(picks) if pick.allowed is None]
        if self._given_UV.device.type == "cpu" or not whole:
            return [self.pick(pick) for pick in picks]
        there = dict(zip(whole, draw_together(self._given_UV, [picks[i] for i in whole]), strict=True))
        return [there[i] if i in there else self.pick(pick) for i, pick in enumerate(picks)]


def draw_together(logits_UV: Tensor, picks: Sequence[Pick]) -> list[tuple[int, float]]:
    """What :meth:`Distributions.pick` gives for each of S ``picks`` that allow every token, in few operations for all."""
    device = logits_UV.device
    rows_S = torch.tensor([pick.row for pick in picks], device=device)
    numbers = [(pick.temperature, -1.0 if pick.uniform is None else pick.uniform) for pick in picks]
    temperatures_S, uniforms_S = torch.tensor(numbers, dtype=torch.float64, device=device).unbind(dim=1)
    scaled_SV = logits_UV[rows_S] / temperatures_S.float()[:, None]
    scaled_SV = torch.nn.functional.pad(scaled_SV, (0, -scaled_SV.shape[1] % _BLOCK), value=-torch.inf)
    top_S, best_S = scaled_SV.max(dim=-1)
    shifted_SV = scaled_SV - top_S[:, None]
    weights_SBK = shifted_SV.exp().view(len(picks), -1, _BLOCK)
    cumulative_SB = weights_SBK.sum(dim=-1).double().cumsum(dim=-1)
    total_S1 = cumulative_SB[:, -1:]
    target_S1 = torch.minimum(uniforms_S[:, None] * total_S1, torch.nextafter(total_S1, torch.zeros_like(total_S1)))
    block_S1 = torch.searchsorted(cumulative_SB, target_S1, right=True).clamp(max=cumulative_SB.shape[1] - 1)
    before_S1 = torch.where(block_S1 > 0, cumulative_SB.gather(1, (block_S1 - 1).clamp(min=0)), 0.0)
    weights_SK = weights_SBK[torch.arange(len(picks), device=device), block_S1[:, 0]].double()
    index_S1 = torch.searchsorted(weights_SK.cumsum(dim=-1), target_S1 - before_S1, right=True)
    # The block's own sum was rounded in float32; past its end lies its last token that can be drawn.
    places = torch.arange(_BLOCK, device=device)
    last_S1 = torch.where(weights_SK > 0, places, 0).amax(dim=-1, keepdim=True)
    drawn_S1 = block_S1 * _BLOCK + torch.minimum(index_S1, last_S1)
    token_S1 = torch.where(uniforms_S[:, None] < 0, best_S[:, None], drawn_S1)
    logprob_S1 = shifted_SV.gather(1, token_S1).double() - total_S1.log()
    found = torch.cat([token_S1.double(), logprob_S1], dim=1).tolist()
    return [(int(token), logprob) for token, logprob in found]


class _Whole:
    """Rows of logits (U, vocabulary) at one temperature, every token allowed: weighed once, all together."""

    def __init__(self, logits_UV: Tensor, scale: float) -> None:
        padding = -logits_UV.shape[1] % _BLOCK
        scaled_UV = torch.nn.functional.pad(logits_UV / scale, (0, padding), value=-torch.inf)
        top_U, best_U = scaled_UV.max(dim=-1)
        self._best_U = best_U.tolist()
        self._shifted_UV = (scaled_UV - top_U[:, None]).numpy()
        self._weights_UV = torch.from_numpy(self._shifted_UV).exp().numpy()
        blocks_UB = torch.from_numpy(self._weights_UV).view(len(logits_UV), -1, _BLOCK).sum(dim=-1)
        self._cumulative_UB = blocks_UB.double().cumsum(dim=-1).numpy()

    def best(self, row: int) -> int:
        return int(self._best_U[row])

    def drawn(self, row: int, uniform: float) -> int:
        """The token at ``uniform`` of the inverse of the row's cumulative distribution."""
        cumulative_B = self._cumulative_UB[row]
        target = min(uniform * cumulative_B[-1], np.nextafter(cumulative_B[-1], 0.0))
        block = int(np.searchsorted(cumulative_B, target, side="right"))
        weights = self._weights_UV[row, block * _BLOCK : (block + 1) * _BLOCK].astype(np.float64)
        rest = target - (cumulative_B[block - 1] if block else 0.0)
        index = int(np.searchsorted(np.cumsum(weights), rest, side="right"))
        # The block's own sum was rounded in float32; past its end lies its last token that can be drawn.
        return block * _BLOCK + min(index, int(np.flatnonzero(weights)[-1]))

    def logprob(self, row: int, token: int) -> float:
        return float(self._shifted_UV[row, token]) - float(np.log(self._cumulative_UB[row, -1]))
