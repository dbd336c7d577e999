"""The weights as sampling wants them: matrices packed for products with few rows, adapters inside them where that is exact.

A layer's ``forward`` gives way to a product with a prepared copy while that is wanted, and comes back; the model's own
tensors are never changed. In float32 an adapter is merged into a copy of its own. In half precision that would round a small
change to the weight's own coarse grid, so that the policy that samples is not the one that is trained; there all adapters, and
the model without one, share one packed copy, and an adapter is added to the product as training adds it.
Layers that see the same input are one product. On CPU a copy is packed for oneDNN.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from mmc.engine import onednn
from mmc.engine.joint import Joint, joined
from mmc.engine.memory import total_bytes

if TYPE_CHECKING:
    from torch import Tensor

COPIES = 2
"""Copies with a merged adapter kept at a time, each as large as the layers it stands for; a program whose modules sample with
different adapters switches between them at every step. Further adapters run beside the weights."""
RECENT = 256
"""A copy that was not asked for this many times in a row gives way to another adapter's."""
SHARE = 1 / 8
"""Of the machine's memory that one copy may take: of all, not of what is free now; so a resumed training samples as before."""


@dataclass(frozen=True)
class _Wanted:
    """What a copy stands for."""

    layers: list[Any]
    groups: list[list[Any]]
    """The same layers; each group is one product."""
    tensors: list[Tensor]
    """The adapter's."""


@dataclass
class _Copy:
    versions: tuple[int, ...] | None = None
    """Of the adapter's tensors when the copy was made. PyTorch counts their changes in place, but not those through ``.data``."""
    forwards: list[Callable[..., Tensor]] = field(default_factory=list)
    asked: int = 0


class Prepared:
    """The prepared copies of one model."""

    def __init__(self) -> None:
        self._copies: dict[str | None, _Copy] = {}
        self._wanted: dict[str | None, _Wanted | None] = {}
        self._inside: list[Any] = []
        """Layers whose ``forward`` is a copy's now."""
        self._packed: dict[tuple[Any, ...], Tensor] = {}
        """Linear layers of one product -> their matrix without an adapter: the same in every copy."""
        self._clock = 0

    def put(self, model: Any, name: str | None) -> bool:
        """Runs ``model`` (PEFT's, unless it has no adapters) with ``name`` from a copy from now on; None: without an adapter.

        False, and nothing done, where that cannot be.
        """
        self._clock += 1
        if name not in self._wanted:
            self._wanted[name] = _wanted(model, name)
        wanted = self._wanted[name]
        if wanted is None or (name not in self._copies and _merges(wanted.layers) and not self._room()):
            return False
        copy = self._copies.setdefault(name, _Copy())
        copy.asked = self._clock
        versions = tuple([tensor._version for tensor in wanted.tensors])
        if versions != copy.versions:
            self.take_out()
            copy.forwards, copy.versions = [], None  # before the new ones are made: there is room for one set
            copy.forwards = [forward for group in wanted.groups for forward in self._forwards(group, name)]
            copy.versions = versions
        if self._inside is not wanted.layers:
            self.take_out()
            for layer, forward in zip(wanted.layers, copy.forwards, strict=True):
                layer.forward = forward
            self._inside = wanted.layers
        return True

    def take_out(self) -> None:
        """Lets the layers compute for themselves again."""
        for layer in self._inside:
            del layer.forward
        self._inside = []

    def forget(self, name: str | None) -> None:
        """Drops the copy of an adapter that is removed; None: of the model, which changes."""
        self.take_out()
        if name is None:
            self._packed.clear()
        self._copies.pop(name, None)
        self._wanted.pop(name, None)

    def _room(self) -> bool:
        """Whether there is a place for one more copy, after the least used one gave way if it is old."""
        merged = [name for name in self._copies if name is not None]
        if len(merged) < COPIES:
            return True
        oldest = min(merged, key=lambda name: self._copies[name].asked)
        if self._clock - self._copies[oldest].asked < RECENT:
            return False
        self._copies.pop(oldest)
        return True

    def _forwards(self, group: Sequence[Any], name: str | None) -> list[Callable[..., Tensor]]:
        """What each layer of ``group`` computes, with its adapter if it has it, from a copy of their weights."""
        product, bases = self._product(group, name), [_base(layer) for layer in group]
        if len(group) == 1:
            return [product]
        joint = Joint(product, [len(base.weight) for base in bases])
        return [partial(joint.part, number) for number in range(len(group))]

    def _product(self, group: Sequence[Any], name: str | None) -> Callable[..., Tensor]:
        """The outputs (..., sum of O) of all layers of ``group``."""
        import torch

        bases = [_base(layer) for layer in group]
        bias = _stacked_bias(bases)
        if name is None or _is_linear(group[0]):
            return partial(onednn.linear, self._matrix(bases), bias)
        with torch.no_grad():
            pairs, scaling = [_tensors(layer, name) for layer in group], group[0].scaling[name]
            dtype = bases[0].weight.dtype
            if dtype == torch.float32:
                merged = [
                    torch.addmm(base.weight, up.to(dtype), down.to(dtype), alpha=scaling)
                    for base, (down, up) in zip(bases, pairs, strict=True)
                ]
                return partial(onednn.linear, onednn.pack(_stacked(merged)), bias)
            down_IR = torch.cat([down for down, _ in pairs]).to(dtype).T.contiguous()
            up_RO = torch.block_diag(*(up.to(dtype).T for _, up in pairs))  # type: ignore[no-untyped-call]
            return partial(_beside, self._matrix(bases), bias, down_IR, up_RO, scaling)

    def _matrix(self, bases: Sequence[Any]) -> Tensor:
        key = tuple(bases)
        if key not in self._packed:
            self._packed[key] = onednn.pack(_stacked([base.weight.detach() for base in bases]))
        return self._packed[key]


def _wanted(model: Any, name: str | None) -> _Wanted | None:
    """What a copy for ``name`` stands for; None where there can be none."""
    layers = _plain_layers(model) if name is None else _adapted_layers(model, name)
    if layers is None:
        return None
    groups = [part for group in joined(model.named_modules(), layers) for part in (_apart(group) if name else [group])]
    ordered = [layer for group in groups for layer in group]
    return _Wanted(ordered, groups, [tensor for layer in ordered for tensor in _tensors(layer, name)])


def _apart(group: list[Any]) -> list[list[Any]]:
    """Layers whose adapters are scaled otherwise are products of their own."""
    alike = all(not _is_linear(layer) and layer.scaling == group[0].scaling for layer in group)
    return [group] if alike else [[layer] for layer in group]


def _plain_layers(model: Any) -> list[Any] | None:
    """The linear layers without their adapters, the head among them; None where nothing is gained or the copy is too large."""
    import torch

    layers = [m for name, m in model.named_modules() if _is_linear(m) and "lora_" not in name]
    found = [
        m for m in layers if onednn.packable(m.weight) and (m.weight.dtype != torch.float32 or onednn.faster(m.weight))
    ]
    return found if found and _fits(found) else None


def _adapted_layers(peft: Any, name: str) -> list[Any] | None:
    """The adapter's layers and the head. None where one is not plain LoRA on a linear layer of its own or would gain
    nothing, and where a copy of them is too large.
    """
    from peft.tuners.lora import Linear, LoraLayer

    found = [m for m in peft.modules() if isinstance(m, LoraLayer) and name in m.lora_A]
    embedding = peft.get_input_embeddings().weight
    plain = all(
        isinstance(m, Linear)
        and _gains(m.get_base_layer().weight)
        and name not in getattr(m, "lora_magnitude_vector", {})
        and not m.lora_bias[name]
        and m.get_base_layer().weight is not embedding
        for m in found
    )
    rest = any(name in getattr(m, "lora_embedding_A", {}) for m in peft.modules() if isinstance(m, LoraLayer))
    head = peft.get_output_embeddings()
    bare = [head] if _is_linear(head) and onednn.packable(head.weight) else []
    return [*found, *bare] if plain and not rest and _fits([_base(m) for m in found] + bare) else None


def _base(layer: Any) -> Any:
    """The linear layer under an adapter, or the layer itself."""
    return layer if _is_linear(layer) else layer.get_base_layer()


def _stacked(weights: Sequence[Tensor]) -> Tensor:
    import torch

    return weights[0] if len(weights) == 1 else torch.cat(list(weights))


def _stacked_bias(bases: Sequence[Any]) -> Tensor | None:
    """The biases of ``bases`` one after the other, zeros for those without; None where all are."""
    if all(base.bias is None for base in bases):
        return None
    return _stacked([base.weight.new_zeros(len(base.weight)) if base.bias is None else base.bias for base in bases])


def _tensors(layer: Any, name: str | None) -> tuple[Any, ...]:
    """The adapter's tensors of ``layer``; none of a layer without it."""
    return () if name is None or _is_linear(layer) else (layer.lora_A[name].weight, layer.lora_B[name].weight)


def _fits(layers: Iterable[Any]) -> bool:
    weights = [layer.weight for layer in layers]
    size: int = sum(weight.numel() * weight.element_size() for weight in weights)
    return not weights or size <= SHARE * total_bytes(weights[0].device)


def _merges(layers: Iterable[Any]) -> bool:
    """Whether copies of ``layers`` are each adapter's own."""
    import torch

    return any(not _is_linear(layer) and _base(layer).weight.dtype == torch.float32 for layer in layers)


def _is_linear(layer: Any) -> bool:
    import torch

    return type(layer) is torch.nn.Linear


def _gains(weight: Tensor) -> bool:
    """In half precision without packing the layers' own way is as good."""
    import torch

    return weight.dtype == torch.float32 or onednn.packable(weight)


def _beside(matrix: Tensor, bias: Tensor | None, down_IR: Tensor, up_RO: Tensor, scaling: float, x: Tensor) -> Tensor:
    """Gives x W' + bias + s (x A') B', rounded where training rounds it."""
    out = onednn.linear(matrix, bias, x)
    out.view(-1, out.shape[-1]).addmm_((x @ down_IR).view(-1, down_IR.shape[1]), up_RO, alpha=scaling)
    return out
