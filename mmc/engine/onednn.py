"""Products with a matrix of weights by oneDNN, where it is faster than what PyTorch would call.

PyTorch's float32 products on CPU are MKL's, which is tuned for Intel's processors: on an AMD EPYC oneDNN was 1.0 to 1.5 times
as fast for 32 to 1024 rows (``tests/bench/kernels.py``). A packed matrix is a copy in oneDNN's blocked format, which
torch.compile uses too; without one oneDNN reads the matrix as it is.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

PACKED_ROWS = 32
"""Rows of the products that a packed matrix is laid out for; others are nearly as fast."""


def packable(weight: Tensor) -> bool:
    """Whether :func:`pack` copies ``weight``, so that products with few rows gain."""
    import torch

    if weight.device.type != "cpu" or not torch._C._has_mkldnn or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    fast_half = weight.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return weight.dtype == torch.float32 or bool(fast_half)


def pack(weight: Tensor) -> Tensor:
    """``weight`` (O, I) packed, or itself."""
    import torch

    if not packable(weight):
        return weight
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), PACKED_ROWS)
    return packed


def linear(matrix: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
    """Gives x W' + bias for x (..., I) and W (O, I), packed or plain; without gradient."""
    import torch

    if not matrix.is_mkldnn and not faster(matrix):
        return torch.nn.functional.linear(x, matrix, bias)
    found: Tensor = torch.ops.mkldnn._linear_pointwise(x, matrix, bias, "none", [], "")
    return found


def faster(weight: Tensor) -> bool:
    """Whether oneDNN multiplies with ``weight`` as it is faster than PyTorch's own product."""
    import torch

    return weight.dtype == torch.float32 and "amd" in _processor() and packable(weight)


@cache
def _processor() -> str:
    """The name of this machine's processor; empty where PyTorch does not say."""
    import torch

    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return str(capabilities.get("cpu_name", "")).lower()
