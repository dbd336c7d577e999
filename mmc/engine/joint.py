"""Layers that are asked with the same input, computed as one product.

Attention projects the same hidden states three times, a gated MLP twice. With few rows such products are so short that
starting them takes as long as computing them; over their matrices stacked it is one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

FAMILIES = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Names of layers of one module that are given the same tensor, as transformers calls them."""


def joined(named: Iterable[tuple[str, Any]], layers: Sequence[Any]) -> list[list[Any]]:
    """``layers`` in their order, those that may be computed together in one list. ``named``: the model's modules by path."""
    family = {name: number for number, names in enumerate(FAMILIES) for name in names}
    place: dict[int, tuple[str, object]] = {}
    for path, module in named:
        parent, _, leaf = path.removesuffix(".base_layer").rpartition(".")  # PEFT puts a layer into its own
        if leaf in family:
            place[id(module)] = (parent, family[leaf])
    found: dict[tuple[str, object], list[Any]] = {}
    for layer in layers:
        found.setdefault(place.get(id(layer), ("", id(layer))), []).append(layer)
    return list(found.values())


class Joint:
    """The outputs of several layers from one product over their stacked matrices, made when the first of them is asked for.

    A layer that is asked with another tensor than the one before it, with the same after a change in place, or twice, has the
    product made anew: so the outputs are right whatever a model does, and cost more where its layers are not given the same.
    """

    def __init__(self, product: Callable[[Tensor], Tensor], widths: Sequence[int]) -> None:
        self._product, self._widths = product, list(widths)
        self._input: tuple[Tensor, int] | None = None
        """With its version, which PyTorch counts."""
        self._waiting: dict[int, Tensor] = {}
        """Outputs that were not asked for yet, by the number of the layer."""

    def part(self, number: int, x: Tensor) -> Tensor:
        """The output of layer ``number`` for ``x`` (..., I)."""
        import torch

        known = self._input is not None and self._input[0] is x and self._input[1] == x._version
        if not known or number not in self._waiting:
            self._input = x, x._version
            parts = torch.split(self._product(x), self._widths, dim=-1)
            self._waiting = dict(enumerate(parts))
        found = self._waiting.pop(number)
        if not self._waiting:
            self._input = None
        return found
