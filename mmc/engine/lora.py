"""A linear layer with LoRA, in as few passes over memory as it takes.

PEFT scales the change and adds it in passes of their own, in half precision after casting the input to float32. For plain LoRA on
a frozen linear layer the same is one matrix product that accumulates into the output; its backward keeps no more than
the input and its r-wide projection. Whatever else PEFT can do (dropout, DoRA, several adapters at once) stays PEFT's.
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora import Linear
from torch import Tensor

from mmc.engine.onednn import linear


class LeanLinear(Linear):  # type: ignore[misc]
    """PEFT's LoRA layer, computed lean where it can be. Layers become one by their class: their tensors stay as they are."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        name = self._plain_adapter() if not args and not kwargs else None
        if name is None:
            found: Tensor = super().forward(x, *args, **kwargs)
            return found
        down, up = self.lora_A[name].weight, self.lora_B[name].weight
        weight, bias = self.base_layer.weight, self.base_layer.bias
        out: Tensor = _LoraLinear.apply(x, weight, bias, down, up, self.scaling[name])  # type: ignore[no-untyped-call]
        return out

    def _plain_adapter(self) -> str | None:
        """The one adapter that runs, where it is plain LoRA on a frozen linear layer."""
        if self.disable_adapters or self.merged or len(self.active_adapters) != 1:
            return None
        name: str = self.active_adapters[0]
        plain = (
            name in self.lora_A
            and name not in self.lora_variant
            and not self.lora_bias[name]
            and not (self.training and getattr(self.lora_dropout[name], "p", 0.0))
            and type(self.base_layer) is torch.nn.Linear
            and not any(p.requires_grad for p in self.base_layer.parameters())
        )
        return name if plain else None


def lean(peft: Any) -> None:
    """Makes PEFT's plain LoRA layers in ``peft`` compute lean."""
    for module in peft.modules():
        if type(module) is Linear:
            module.__class__ = LeanLinear


class _LoraLinear(torch.autograd.Function):
    """(x (..., I), W (O, I), bias (O) or None, A (r, I), B (O, r), s) -> x W' + bias + s (x A') B'."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, scaling: float
    ) -> Tensor:
        x_NI = x.flatten(0, -2)
        down_RI, up_OR = down.to(x.dtype), up.to(x.dtype)
        thin_NR = x_NI @ down_RI.T
        out_NO = linear(weight, bias, x_NI)
        out_NO.addmm_(thin_NR, up_OR.T, alpha=scaling)
        ctx.save_for_backward(x_NI, thin_NR, weight, down_RI, up_OR)
        ctx.scaling, ctx.dtypes = scaling, (down.dtype, up.dtype)
        return out_NO.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x_NI, thin_NR, weight, down_RI, up_OR = ctx.saved_tensors
        gradient_NO = gradients[0].flatten(0, -2)
        thin_gradient_NR = _scaled_product(gradient_NO, up_OR, ctx.scaling)
        x_gradient = down_gradient = up_gradient = None
        if ctx.needs_input_grad[0]:
            x_gradient = linear(weight.T, None, gradient_NO).addmm_(thin_gradient_NR, down_RI)
            x_gradient = x_gradient.view(*gradients[0].shape[:-1], -1)
        if ctx.needs_input_grad[3]:
            down_gradient = (thin_gradient_NR.T @ x_NI).to(ctx.dtypes[0])
        if ctx.needs_input_grad[4]:
            up_gradient = _scaled_product(gradient_NO.T, thin_NR, ctx.scaling).to(ctx.dtypes[1])
        return x_gradient, None, None, down_gradient, up_gradient, None


def _scaled_product(a: Tensor, b: Tensor, factor: float) -> Tensor:
    """``factor`` a b, in one pass."""
    return torch.addmm(a.new_empty(a.shape[0], b.shape[1]), a, b, beta=0, alpha=factor)
