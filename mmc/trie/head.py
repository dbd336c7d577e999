"""Log-probabilities of chosen tokens from hidden states, without keeping or differentiating a vocabulary of logits.

What reaches the loss of a row is one logit minus a log-sum-exp, so its gradient is known: the chosen token's indicator minus
the softmax. A frozen linear head turns that into a direction of the hidden state in the forward already, and the backward
needs no logits at all; any other head computes them once more there, and autograd sees the head alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmc.trie.model import CausalModel

HEAD_ROWS = 512
"""Rows whose logits exist at a time."""


@dataclass(frozen=True)
class FreeTokens:
    """F sampled tokens: the hidden state that predicts each, its id, temperature and allowed set (None: all tokens)."""

    rows_F: NDArray[np.int64]
    targets_F: NDArray[np.int64]
    temperatures_F: NDArray[np.float32]
    allowed_F: Sequence[NDArray[np.int32] | None]

    def take(self, part: NDArray[np.int64]) -> FreeTokens:
        allowed = [self.allowed_F[i] for i in part]
        return FreeTokens(self.rows_F[part], self.targets_F[part], self.temperatures_F[part], allowed)


def chosen_logprobs(model: CausalModel, hidden_NH: Tensor, free: FreeTokens) -> tuple[Tensor, Tensor]:
    """(log-probabilities (F,) with gradient, entropies (F,) without), float32, of ``free`` among rows of ``hidden_NH``.

    They are those of the distribution a token was drawn from, temperature and allowed set applied. A bounded number of
    rows is computed at a time.
    """
    order = np.argsort(free.rows_F, kind="stable")
    parameters = [p for p in model.head.parameters() if p.requires_grad]
    found: list[tuple[Tensor, Tensor]] = []
    for start in range(0, len(order), HEAD_ROWS):
        part = free.take(order[start : start + HEAD_ROWS])
        unique, inverse = np.unique(part.rows_F, return_inverse=True)
        rows = torch.from_numpy(unique).to(hidden_NH.device)
        piece = _Piece(model, inverse, part, parameters)
        found.append(_Chosen.apply(hidden_NH[rows], piece, *parameters))  # type: ignore[no-untyped-call]
    back = torch.from_numpy(np.argsort(order, kind="stable")).to(hidden_NH.device)
    logprobs_F, entropies_F = (torch.cat(parts)[back] for parts in zip(*found, strict=True))
    return logprobs_F, entropies_F


class _Chosen(torch.autograd.Function):
    """(hidden (U, H), piece, the head's trained parameters) -> (log-probabilities (F,), entropies (F,))."""

    @staticmethod
    def forward(ctx: Any, hidden_UH: Tensor, piece: _Piece, *_: Tensor) -> tuple[Tensor, Tensor]:
        ctx.piece, ctx.toward = piece, piece.direct and ctx.needs_input_grad[0]
        logprobs_F, entropies_F, toward_FH = piece.forward(hidden_UH, ctx.toward)
        ctx.save_for_backward(toward_FH if ctx.toward else hidden_UH)
        ctx.mark_non_differentiable(entropies_F)
        return logprobs_F, entropies_F

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (kept,) = ctx.saved_tensors
        if ctx.toward:
            return ctx.piece.along(kept, gradients[0]), None
        hidden_gradient, *rest = ctx.piece.backward(kept, gradients[0])
        return hidden_gradient, None, *rest


class _Piece:
    """The free tokens of one piece, as tensors: unconstrained rows once for every temperature, allowed sets padded."""

    def __init__(
        self, model: CausalModel, inverse: NDArray[np.int64], free: FreeTokens, parameters: Sequence[Tensor]
    ) -> None:
        self._model, self._parameters = model, list(parameters)
        self.direct = type(model.head) is torch.nn.Linear and not self._parameters and model.softcap is None
        """Whether the gradient of the hidden states is known in the forward."""
        device, constrained = model.device, np.array([a is not None for a in free.allowed_F])

        def tensor(array: NDArray[Any]) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(array)).to(device)

        self._rows_F = tensor(inverse)
        whole, some = np.flatnonzero(~constrained), np.flatnonzero(constrained)
        self._whole, self._some = tensor(whole), tensor(some)
        pairs = np.stack([inverse[whole], free.temperatures_F[whole].view(np.int32)], axis=1)
        unique, first, pair = np.unique(pairs, axis=0, return_index=True, return_inverse=True)
        self._pair = tensor(pair.reshape(-1))
        self._pair_rows = tensor(unique[:, 0])
        self._pair_temperatures = tensor(unique[:, 1].astype(np.int32).view(np.float32))
        self._rows = int(inverse.max(initial=-1)) + 1
        self._every_row = not len(some) and np.array_equal(unique[:, 0], np.arange(self._rows))
        self._whole_targets = tensor(free.targets_F[whole])
        self._anchors = tensor(free.targets_F[whole][first])

        sets = [a for a in free.allowed_F if a is not None]
        width = max(map(len, sets), default=0)
        ids, padding = np.zeros((len(sets), width), np.int64), np.ones((len(sets), width), bool)
        for i, allowed in enumerate(sets):
            ids[i, : len(allowed)], padding[i, : len(allowed)] = allowed, False
        self._sets, self._padding = tensor(ids), tensor(padding)
        self._some_rows = tensor(inverse[some])
        self._some_temperatures = tensor(free.temperatures_F[some])
        places = (ids == free.targets_F[some][:, None]) & ~padding
        self._places = tensor(places.argmax(axis=1)) if len(some) else self._some

    def forward(self, hidden_UH: Tensor, toward: bool) -> tuple[Tensor, Tensor, Tensor | None]:
        """Log-probabilities (F,), entropies (F,) and, where wanted, the gradient (F, H) of each log-probability by its row."""
        logits_UV = self._model.logits(hidden_UH)
        logprobs_F = logits_UV.new_empty(len(self._rows_F))
        entropies_F = torch.empty_like(logprobs_F)
        toward_FH = logits_UV.new_empty(len(self._rows_F), hidden_UH.shape[1]) if toward else None
        if len(self._some):
            logprobs_CW = self._constrained(logits_UV)
            logprobs_F[self._some] = logprobs_CW.gather(1, self._places[:, None])[:, 0]
            entropies_F[self._some] = -(logprobs_CW.exp() * logprobs_CW.clamp(min=-1e9)).sum(dim=-1)
            if toward_FH is not None:
                toward_FH[self._some] = self._toward_some(logprobs_CW)
        if len(self._whole):
            centred_PV = self._scaled(logits_UV)
            centred_PV -= centred_PV.amax(dim=-1, keepdim=True)
            weights_PV = centred_PV.exp()
            sums_P = weights_PV.sum(dim=-1)
            log_sums_P = sums_P.log()
            logprobs_F[self._whole] = centred_PV[self._pair, self._whole_targets] - log_sums_P[self._pair]
            means_P = torch.linalg.vecdot(weights_PV, centred_PV) / sums_P
            entropies_F[self._whole] = (log_sums_P - means_P)[self._pair]
            if toward_FH is not None:
                toward_FH[self._whole] = self._toward_whole(weights_PV, sums_P)
        return logprobs_F, entropies_F, toward_FH

    def _toward_whole(self, weights_PV: Tensor, sums_P: Tensor) -> Tensor:
        """Target's row of the head minus the mean row under the softmax, ``weights_PV / sums_P``; overwrites the weights.

        One target of each pair (its anchor) is subtracted before the product: where the softmax is almost sure of it, what
        is left is small, and would be lost in half precision as a difference of two large rows.
        """
        matrix_VH: Tensor = self._model.head.weight
        weights_PV.scatter_add_(1, self._anchors[:, None], -sums_P[:, None])
        mean_PH = (weights_PV.to(matrix_VH.dtype) @ matrix_VH).float() / sums_P[:, None]
        own_FH = matrix_VH[self._whole_targets].float() - matrix_VH[self._anchors].float()[self._pair]
        return (own_FH - mean_PH[self._pair]) * (self._model.scale / self._pair_temperatures)[self._pair, None]

    def _toward_some(self, logprobs_CW: Tensor) -> Tensor:
        matrix_VH: Tensor = self._model.head.weight
        change_CW = -logprobs_CW.exp()
        change_CW.scatter_add_(1, self._places[:, None], torch.ones_like(change_CW[:, :1]))
        if change_CW.shape[1] * matrix_VH.shape[1] <= len(matrix_VH):
            # Narrow sets gather their rows of the head, which are fewer numbers than the logits then.
            found_CH = (change_CW[:, None].to(matrix_VH.dtype) @ matrix_VH[self._sets])[:, 0]
        else:
            # Padding stands at token 0 with a change of 0.
            change_CV = change_CW.new_zeros(len(change_CW), len(matrix_VH)).scatter_add_(1, self._sets, change_CW)
            found_CH = change_CV.to(matrix_VH.dtype) @ matrix_VH
        return found_CH.float() * (self._model.scale / self._some_temperatures)[:, None]

    def along(self, toward_FH: Tensor, gradient_F: Tensor) -> Tensor:
        """Gradient (U, H) of the hidden states from that of the log-probabilities."""
        gradient_UH = toward_FH.new_zeros(self._rows, toward_FH.shape[1])
        gradient_UH.index_add_(0, self._rows_F, gradient_F[:, None] * toward_FH)
        return gradient_UH.to(self._model.head.weight.dtype)

    def backward(self, hidden_UH: Tensor, gradient_F: Tensor) -> tuple[Tensor, ...]:
        """Gradients of the hidden states and of the head's trained parameters."""
        with torch.enable_grad():
            hidden_UH = hidden_UH.detach().requires_grad_()
            raw_UV = self._model.head(hidden_UH)
        gradient_UV = self._logits_gradient(self._model.finish(raw_UV.detach()), gradient_F)
        return torch.autograd.grad(raw_UV, [hidden_UH, *self._parameters], gradient_UV.to(raw_UV.dtype))

    def _logits_gradient(self, logits_UV: Tensor, gradient_F: Tensor) -> Tensor:
        """The gradient of what the head gave, in float32; may overwrite ``logits_UV``."""
        slope_UV = self._model.slope(logits_UV)
        gradient_UV = None if self._every_row else torch.zeros_like(logits_UV)
        if len(self._some):
            assert gradient_UV is not None
            change_CW = -torch.exp(self._constrained(logits_UV))
            change_CW.scatter_add_(1, self._places[:, None], torch.ones_like(change_CW[:, :1]))
            change_CW *= (gradient_F[self._some] / self._some_temperatures)[:, None]
            gradient_UV.index_put_((self._some_rows[:, None], self._sets), change_CW, accumulate=True)
        if len(self._whole):
            scaled_PV = self._scaled(logits_UV)
            scaled_PV -= torch.logsumexp(scaled_PV, dim=-1, keepdim=True)
            change_PV = scaled_PV.exp_()
            own_F = gradient_F[self._whole] / self._pair_temperatures[self._pair]
            change_PV *= -torch.zeros_like(self._pair_temperatures).index_add_(0, self._pair, own_F)[:, None]
            change_PV.index_put_((self._pair, self._whole_targets), own_F, accumulate=True)
            gradient_UV = change_PV if gradient_UV is None else gradient_UV.index_add_(0, self._pair_rows, change_PV)
        assert gradient_UV is not None
        return gradient_UV if slope_UV is None else gradient_UV * slope_UV

    def _scaled(self, logits_UV: Tensor) -> Tensor:
        """The rows of unconstrained tokens over their temperatures; in place where every row is one of them."""
        temperatures = self._pair_temperatures[:, None]
        return logits_UV.div_(temperatures) if self._every_row else logits_UV[self._pair_rows].div_(temperatures)

    def _constrained(self, logits_UV: Tensor) -> Tensor:
        """Log-probabilities (C, W) over the allowed sets, minus infinity in their padding."""
        logits_CW = logits_UV[self._some_rows[:, None], self._sets] / self._some_temperatures[:, None]
        return torch.log_softmax(logits_CW.masked_fill(self._padding, -torch.inf), dim=-1)
