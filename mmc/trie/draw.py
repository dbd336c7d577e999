"""Draws of tokens from logits: inverse-CDF on a uniform number that the caller brings.

A whole vocabulary is weighed in blocks: a draw first finds its block, then its token in there. So only the blocks' sums
are ever accumulated in float64, not every token's weight.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_BLOCK = 256
"""Tokens a block."""


class Distributions:
    """Next-token distributions from U rows of float32 logits (U, vocabulary), on the CPU."""

    def __init__(self, logits_UV: Tensor) -> None:
        self._logits_UV = logits_UV
        self._whole: dict[float, _Whole] = {}

    def pick(
        self, row: int, temperature: float, uniform: float | None, allowed: NDArray[np.int32] | None = None
    ) -> tuple[int, float]:
        """A token of ``row`` and its log-probability at ``temperature`` (> 0) among the ``allowed`` ids, all when None.

        ``uniform`` in [0, 1) is where the cumulative distribution is inverted; None takes the likeliest token.
        """
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
