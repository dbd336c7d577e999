"""An attention function in which every token sees its ancestors in the forest, and nothing else.

Registered with transformers as ``mmc_trie``; a forward passes ``trie=Layout``. Rows of the forest are taken in blocks of
neighbours in depth-first order: those share most of their ancestors, so a block attends to the few keys that any of
its rows can see instead of the whole forest. On CUDA a forest goes through FlexAttention, which skips unrelated branches itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property, partial
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from mmc.trie.pack import Forest

ATTENTION = "mmc_trie"
BLOCK_ROWS = 256
"""Rows in one block: large enough for efficient matrix products, small enough to skip unrelated branches."""
BLOCK_ROWS_ON_CUDA = 1024
"""There a block more costs launches in every layer, and its products little."""


class KeyValueStore(Protocol):
    """Keeps keys and values of earlier forwards."""

    def extend(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Stores those of the N rows of this forward, (N, H, D); returns all (slots, H, D)."""
        ...


@dataclass(frozen=True)
class Block:
    """Rows ``start`` to ``end`` of a forward, the keys they may see and which row sees which."""

    start: int
    end: int
    keys_K: Tensor | None
    """Indices of the keys any row of the block sees; None: all keys, in their order."""
    mask_RK: Tensor
    """True where row r sees key k."""
    distance_RK: Tensor
    """How many positions key k lies before row r, for sliding windows."""


@dataclass(frozen=True)
class Spans:
    """Which of M keys R rows see, as numbers: row r sees key k when k lies among r's ancestors, or is r itself."""

    rows_R: NDArray[np.int64]
    """Nodes of the rows."""
    nodes_M: NDArray[np.int64]
    """Nodes of the keys."""
    ends_M: NDArray[np.int64]
    """One past the last descendant of each key's node."""
    depths_R: NDArray[np.int64]
    depths_M: NDArray[np.int64]


@dataclass
class Layout:
    """The shape of one forward over a forest: what each row attends to. Shared by all layers."""

    make_blocks: Callable[[], Sequence[Block]]
    store: KeyValueStore | None = None
    spans: Spans | None = None
    """Where the rows are nodes of one forest: then FlexAttention can do without blocks."""
    _masks: dict[tuple[object, ...], Any] = field(default_factory=dict)

    @cached_property
    def blocks(self) -> Sequence[Block]:
        return self.make_blocks()

    def mask(self, number: int, window: int | None, groups: int, dtype: torch.dtype) -> Tensor:
        """What is added to the scores of a block: minus infinity where a row does not see a key, outside a sliding window too.

        Repeated for ``groups`` query heads a key head. Made once for all layers: from booleans every layer would make its own.
        """
        key = (number, window, groups, dtype)
        if key not in self._masks:
            block = self.blocks[number]
            seen = block.mask_RK if window is None else block.mask_RK & (block.distance_RK < window)
            added = torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, -torch.inf)
            self._masks[key] = added.repeat(groups, 1)
        mask: Tensor = self._masks[key]
        return mask

    def block_mask(self, window: int | None, device: torch.device) -> BlockMask:
        """The same for FlexAttention; made once for all layers that have this window."""
        assert self.spans is not None
        if (window,) not in self._masks:
            rows, nodes, ends, depths, below = (
                torch.from_numpy(array).to(device)
                for array in (
                    self.spans.rows_R,
                    self.spans.nodes_M,
                    self.spans.ends_M,
                    self.spans.depths_R,
                    self.spans.depths_M,
                )
            )

            def sees(batch: Tensor, head: Tensor, row: Tensor, key: Tensor) -> Tensor:
                seen = (nodes[key] <= rows[row]) & (rows[row] < ends[key])
                return seen if window is None else seen & (depths[row] - below[key] < window)

            self._masks[window,] = create_block_mask(sees, None, None, len(rows), len(nodes), device=device)
        mask: BlockMask = self._masks[window,]
        return mask


def forest_layout(
    forest: Forest,
    device: torch.device,
    known: NDArray[np.int64] | None = None,
    store: KeyValueStore | None = None,
    block_rows: int = BLOCK_ROWS,
) -> Layout:
    """The layout of one forward over a forest, or over all its nodes but the ``known`` ones.

    Then ``store`` gives keys and values of those first, in this order, and after them those of the forward's own nodes.
    """
    own_R = np.arange(len(forest)) if known is None else np.delete(np.arange(len(forest)), known)
    nodes_M = own_R if known is None else np.concatenate([known, own_R])
    spans = Spans(own_R, nodes_M, forest.ends_N[nodes_M], forest.positions_N[own_R], forest.positions_N[nodes_M])
    return Layout(lambda: _blocks(spans, device, block_rows), store, spans)


def _blocks(spans: Spans, device: torch.device, block_rows: int) -> list[Block]:
    blocks = []
    for start in range(0, len(spans.rows_R), block_rows):
        rows_R = spans.rows_R[start : start + block_rows]
        keys_K = np.flatnonzero((spans.nodes_M <= rows_R[-1]) & (spans.ends_M > rows_R[0]))
        mask_RK = (spans.nodes_M[keys_K] <= rows_R[:, None]) & (rows_R[:, None] < spans.ends_M[keys_K])
        distance_RK = spans.depths_R[start : start + block_rows, None] - spans.depths_M[keys_K]
        tensors = (torch.from_numpy(array).to(device) for array in (keys_K, mask_RK, distance_RK))
        blocks.append(Block(start, start + len(rows_R), *tensors))
    return blocks


FLEX_ON = {"cuda"}
"""Kinds of devices where a forest's forward goes through FlexAttention."""
_FLEX_WIDTH = 16
"""The narrowest heads it takes."""


@cache
def _flex(device: str) -> Callable[..., Tensor]:
    return torch.compile(flex_attention, dynamic=True) if device == "cuda" else flex_attention  # type: ignore[return-value]


def trie_attention(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """Attention of (1, Hq, N, D) queries over (1, H, M, D) keys as transformers calls it; gives (1, N, Hq, D)."""
    layout: Layout = options["trie"]
    _, heads, _, width = query.shape
    shared = key.shape[1]
    groups = heads // shared
    # A token's keys of all heads lie side by side, as the projection left them: so a block gathers whole rows of memory.
    key_MHD, value_MHD = key[0].transpose(0, 1), value[0].transpose(0, 1)
    if layout.store is not None:
        key_MHD, value_MHD = layout.store.extend(module.layer_idx, key_MHD, value_MHD)  # type: ignore[arg-type]
    scale = options.get("scaling")
    if layout.spans is not None and query.device.type in FLEX_ON and width >= _FLEX_WIDTH:
        out = _flex(query.device.type)(
            query,
            key_MHD.transpose(0, 1)[None],
            value_MHD.transpose(0, 1)[None],
            score_mod=_softcap(options["softcap"]) if options.get("softcap") else None,
            block_mask=layout.block_mask(options.get("sliding_window"), query.device),
            scale=scale,
            enable_gqa=groups > 1,
        )
        return out.transpose(1, 2).contiguous(), None
    outputs = []
    for number, block in enumerate(layout.blocks):
        size = block.end - block.start
        # Query heads that share a key head become further rows, so keys are never repeated.
        q = query[0, :, block.start : block.end].reshape(1, shared, groups * size, width)
        whole = block.keys_K is None
        k, v = (x if whole else x.index_select(0, block.keys_K) for x in (key_MHD, value_MHD))  # type: ignore[arg-type]
        k, v = k.transpose(0, 1)[None], v.transpose(0, 1)[None]
        attend: Callable[..., Tensor] = scaled_dot_product_attention
        if options.get("softcap") or (query.is_cuda and not torch.is_grad_enabled()):
            # Rows over many more keys: on CUDA plain products use more of the device than a fused kernel, which walks the keys
            # and wants the mask in a layout of its own.
            attend = partial(_in_products, options.get("softcap"))
        mask = layout.mask(number, options.get("sliding_window"), groups, query.dtype)
        out = attend(q, k, v, attn_mask=mask, scale=scale)
        outputs.append(out.reshape(heads, size, value.shape[-1]))
    joined = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)
    return joined.transpose(0, 1).unsqueeze(0).contiguous(), None


def _in_products(
    cap: float | None, q: Tensor, k: Tensor, v: Tensor, *, attn_mask: Tensor, scale: float | None
) -> Tensor:
    """Attention as two products, the scores between them capped where a ``cap`` is given; a softmax in float32."""
    factor = scale if scale is not None else q.shape[-1] ** -0.5
    if q.is_cuda and q.dtype != torch.float32:
        scores = torch.bmm(q[0], k[0].transpose(-1, -2), out_dtype=torch.float32)[None] * factor
    else:
        scores = q @ k.transpose(-1, -2) * factor
    if cap:
        scores = torch.tanh(scores / cap) * cap
    return torch.softmax(scores + attn_mask, dim=-1, dtype=torch.float32).to(v.dtype) @ v


def _softcap(cap: float) -> Callable[..., Tensor]:
    def capped(score: Tensor, batch: Tensor, head: Tensor, row: Tensor, key: Tensor) -> Tensor:
        return torch.tanh(score / cap) * cap

    return capped


AttentionInterface.register(ATTENTION, trie_attention)
