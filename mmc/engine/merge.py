"""Adapters merged into the weights, for sampling: one matrix product a layer instead of three.

The model's own tensors are never changed: a layer's weight points to a merged copy while it is wanted, and back.
Only in float32: in half precision a merged weight is rounded to the weight's own coarse grid, and most of a small change
is lost or becomes noise; so the policy that samples would not be the one that is trained.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

COPIES = 2
"""Merged copies kept at a time, each as large as the layers it stands for; a program whose modules sample with different
adapters switches between them at every step. Further adapters run unmerged."""
RECENT = 256
"""A copy that was not asked for this many times in a row gives way to another adapter's."""


@dataclass
class _Copy:
    versions: tuple[int, ...] = ()
    """Of the adapter's tensors when they were merged. PyTorch counts their changes in place, but not those through ``.data``."""
    weights: list[Any] = field(default_factory=list)
    asked: int = 0


class Merged:
    """The merged copies of one model."""

    def __init__(self) -> None:
        self._copies: dict[str, _Copy] = {}
        self._layers: dict[str, list[tuple[Any, Any]] | None] = {}
        self._inside: list[tuple[Any, Any]] = []
        """Parameters that point to a copy now, with their own tensors."""
        self._name: str | None = None
        self._clock = 0

    def put(self, peft: Any, name: str) -> bool:
        """Runs the model with ``name`` merged from now on. False, and nothing done, where that cannot be."""
        self._clock += 1
        layers = self._mergeable(peft, name)
        if layers is None or (name not in self._copies and not self._room()):
            return False
        copy = self._copies.setdefault(name, _Copy())
        copy.asked = self._clock
        versions = tuple(tensor._version for layer, _ in layers for tensor in _tensors(layer, name))
        if versions != copy.versions:
            self.take_out()
            self._merge(layers, name, copy)
            copy.versions = versions
        if self._name != name:
            self.take_out()
            for (_, weight), merged in zip(layers, copy.weights, strict=True):
                self._inside.append((weight, weight.data))
                weight.data = merged
            self._name = name
        return True

    def take_out(self) -> None:
        """Puts the model's own weights back."""
        for weight, own in self._inside:
            weight.data = own
        self._inside, self._name = [], None

    def forget(self, name: str) -> None:
        """Drops what is known of an adapter that is removed."""
        if self._name == name:
            self.take_out()
        self._copies.pop(name, None)
        self._layers.pop(name, None)

    def _room(self) -> bool:
        """Whether there is a place for one more copy, after the least used one gave way if it is old."""
        if len(self._copies) < COPIES:
            return True
        oldest = min(self._copies, key=lambda name: self._copies[name].asked)
        if self._clock - self._copies[oldest].asked < RECENT:
            return False
        self._copies.pop(oldest)
        return True

    def _mergeable(self, peft: Any, name: str) -> list[tuple[Any, Any]] | None:
        """The adapter's layers with their weights; None where one is not plain LoRA on a linear float32 layer of its own."""
        if name not in self._layers:
            import torch
            from peft.tuners.lora import Linear, LoraLayer

            found = [m for m in peft.modules() if isinstance(m, LoraLayer) and name in m.lora_A]
            embedding = peft.get_input_embeddings().weight
            plain = all(
                isinstance(m, Linear)
                and m.get_base_layer().weight.dtype == torch.float32
                and name not in getattr(m, "lora_magnitude_vector", {})
                and m.get_base_layer().weight is not embedding
                for m in found
            )
            rest = any(name in getattr(m, "lora_embedding_A", {}) for m in peft.modules() if isinstance(m, LoraLayer))
            self._layers[name] = [(m, m.get_base_layer().weight) for m in found] if plain and not rest else None
        return self._layers[name]

    def _merge(self, layers: list[tuple[Any, Any]], name: str, copy: _Copy) -> None:
        import torch

        with torch.no_grad():
            if not copy.weights:
                copy.weights = [torch.empty_like(weight.data) for _, weight in layers]
            for (layer, weight), merged in zip(layers, copy.weights, strict=True):
                torch.add(weight.data, layer.get_delta_weight(name).to(weight.dtype), out=merged)


def _tensors(layer: Any, name: str) -> tuple[Any, Any]:
    return layer.lora_A[name].weight, layer.lora_B[name].weight
