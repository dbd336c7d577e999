"""An attention function in which every token sees its ancestors in the forest, and nothing else.

Registered with transformers as ``mmc_trie``; a forward passes ``trie=Layout``. Rows of the forest are taken in blocks of
neighbours in depth-first order: those share most of their ancestors, so a block attends to the few keys that any of
its rows can see instead of the whole forest. On CPU several blocks are one batch where that keeps the threads busy: there a
head of a batch goes backward on one thread. On CUDA a forest goes through FlexAttention, which skips unrelated branches itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from mmc.trie.lanes import Attend, Lanes, Places, filled_up, in_lanes, together
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


@dataclass(frozen=True, eq=False)
class Block:
    """Rows of a forward from ``start`` on, the keys they may see and which row sees which; or B such blocks of equally many rows,
    one after the other, that are attended to as one batch.
    """

    start: int
    keys_BK: Tensor | None
    """Indices of the keys any row of a block sees; None: all keys, in their order (B is 1 then)."""
    mask_BRK: Tensor
    """True where row r sees key k."""
    distance_BRK: Tensor
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

    make_blocks: Callable[[int], Sequence[Block]]
    """Gives them for a number of key heads."""
    store: KeyValueStore | None = None
    spans: Spans | None = None
    """Where the rows are nodes of one forest: then FlexAttention can do without blocks."""
    lanes: Sequence[Lanes] = ()
    """Rows that see keys in a lane, besides those of a block or none in blocks."""
    places: Places | None = None
    """Given with ``lanes``."""
    _blocks: Sequence[Block] | None = None
    _masks: dict[tuple[object, ...], Any] = field(default_factory=dict)

    def blocks(self, heads: int) -> Sequence[Block]:
        """Made once for all layers: those of a model have equally many key heads, or nearly."""
        if self._blocks is None:
            self._blocks = self.make_blocks(heads)
        return self._blocks

    def mask(self, block: Block | Lanes, window: int | None, groups: int, dtype: torch.dtype) -> Tensor:
        """What is added to the scores (B, heads, rows, keys) of one of the blocks, or of rows in lanes: minus infinity where
        a row does not see a key, outside a sliding window too.

        Repeated for ``groups`` query heads a key head. Made once for all layers: from booleans every layer would make its own.
        """
        key = (block, window, groups, dtype)
        if key not in self._masks:
            seen = block.mask_BRK if window is None else block.mask_BRK & (block.distance_BRK < window)
            added = torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, -torch.inf)
            self._masks[key] = added.repeat(1, groups, 1)[:, None]
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
    return Layout(lambda heads: _blocks(spans, device, block_rows, heads), store, spans)


def _blocks(spans: Spans, device: torch.device, block_rows: int, heads: int) -> list[Block]:
    starts = range(0, len(spans.rows_R), block_rows)
    pieces_K = [_keys_of(spans, start, block_rows) for start in starts]
    counts = [len(keys_K) for keys_K in pieces_K]
    sizes = [min(block_rows, len(spans.rows_R) - start) for start in starts]
    threads = torch.get_num_threads() if device.type == "cpu" else 1
    blocks, first = [], 0
    while first < len(starts):
        last = first + _together(counts[first:], sizes[first:], heads, threads)
        keys_BK, filled_BK = padded_keys(pieces_K[first:last], device)
        rows_BR = np.arange(starts[first], starts[first] + sum(sizes[first:last])).reshape(last - first, -1, 1)
        nodes_BK, rows = keys_BK[:, None], spans.rows_R[rows_BR]
        mask_BRK = (spans.nodes_M[nodes_BK] <= rows) & (rows < spans.ends_M[nodes_BK]) & filled_BK[:, None]
        distance_BRK = spans.depths_R[rows_BR] - spans.depths_M[nodes_BK]
        blocks.append(
            Block(starts[first], *(torch.from_numpy(array).to(device) for array in (keys_BK, mask_BRK, distance_BRK)))
        )
        first = last
    return blocks


def _keys_of(spans: Spans, start: int, block_rows: int) -> NDArray[np.int64]:
    """Indices of the keys that any of the rows from ``start`` on sees."""
    rows_R = spans.rows_R[start : start + block_rows]
    return np.flatnonzero((spans.nodes_M <= rows_R[-1]) & (spans.ends_M > rows_R[0]))


def _together(counts: Sequence[int], sizes: Sequence[int], heads: int, threads: int) -> int:
    """How many of the first blocks, with these numbers of keys and rows, to attend to as one batch.

    Backward, a thread takes whole heads: 3 heads keep two threads busy as long as 4 would. A batch has more of them to share
    out, but all its blocks have as many keys as the largest.
    """
    best, gain = 1, 1.0
    for count in range(2, min(len(counts), threads) + 1):
        if sizes[count - 1] != sizes[0]:
            break
        together = -(-count * heads // threads) * max(counts[:count])
        apart = -(-heads // threads) * sum(counts[:count])
        if together / apart < gain:
            best, gain = count, together / apart
    return best


def padded_keys(keys: Sequence[NDArray[np.int64]], device: torch.device) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Indices of keys of B blocks (B, K), filled up with 0 to as many as ``device`` likes, and which are no filling."""
    width = filled_up(max(map(len, keys)), device)
    filled_BK = np.arange(width) < np.array([[len(one)] for one in keys])
    keys_BK = np.zeros(filled_BK.shape, dtype=np.int64)
    keys_BK[filled_BK] = np.concatenate(keys)
    return keys_BK, filled_BK


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
    if layout.lanes:
        return _in_parts(layout, query, key_MHD, value_MHD, options)[None], None
    attend: Callable[..., Tensor] = scaled_dot_product_attention
    if options.get("softcap") or (query.is_cuda and not torch.is_grad_enabled()):
        # Rows over many more keys: on CUDA plain products use more of the device than a fused kernel, which walks the keys
        # and wants the mask in a layout of its own.
        attend = partial(_in_products, options.get("softcap"))
    outputs = []
    for block in layout.blocks(shared):
        q, k, v = _rows_and_keys(block, query, key_MHD, value_MHD)
        mask = layout.mask(block, options.get("sliding_window"), groups, query.dtype)
        out = attend(q, k, v, attn_mask=mask, scale=scale)
        outputs.append(_as_rows(out, heads, block.mask_BRK.shape[1]))
    joined = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)
    return joined.transpose(0, 1).unsqueeze(0).contiguous(), None


def _rows_and_keys(block: Block, query: Tensor, key_MHD: Tensor, value_MHD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The block's queries (B, H, groups x rows, D), keys and values (B, H, K, D)."""
    shared, width = key_MHD.shape[1], query.shape[-1]
    groups = query.shape[1] // shared
    batch, size, keys = block.mask_BRK.shape
    end = block.start + batch * size
    # Query heads that share a key head become further rows, so keys are never repeated.
    q = query[0, :, block.start : end].reshape(shared, groups, batch, size, width)
    k, v = (
        (x if block.keys_BK is None else x.index_select(0, block.keys_BK.view(-1)))
        .view(batch, keys, *x.shape[1:])
        .transpose(1, 2)
        for x in (key_MHD, value_MHD)
    )
    return q.permute(2, 0, 1, 3, 4).reshape(batch, shared, groups * size, width), k, v


def _as_rows(out: Tensor, heads: int, size: int) -> Tensor:
    """(B, H, groups x size, ...) of a block -> (Hq, rows, ...)."""
    by_head = out.reshape(len(out), heads, size, *out.shape[3:]).transpose(0, 1)
    return by_head.reshape(heads, len(out) * size, *out.shape[3:])


def _in_parts(layout: Layout, query: Tensor, key_MHD: Tensor, value_MHD: Tensor, options: dict[str, Any]) -> Tensor:
    """Attention of (1, Hq, N, D) queries, some of whose rows see keys in lanes; gives (N, Hq, D)."""
    heads, shared = query.shape[1], key_MHD.shape[1]
    window = options.get("sliding_window")
    attend: Attend = partial(_with_sums, options.get("softcap"), window, options.get("scaling"))
    assert layout.places is not None
    query_NQD = query[0].transpose(0, 1)
    beside = [
        in_lanes(attend, one, query_NQD, key_MHD, value_MHD, layout.mask(one, window, heads // shared, query.dtype))
        for one in layout.lanes
    ]
    blocks = []
    for block in layout.blocks(shared):
        q, k, v = _rows_and_keys(block, query, key_MHD, value_MHD)
        found = attend(q, k, v, attn_mask=layout.mask(block, window, heads // shared, query.dtype))
        out, sums = (_as_rows(one, heads, block.mask_BRK.shape[1]).transpose(0, 1) for one in found)
        blocks.append((out, sums))
    return together(beside, blocks, layout.places)


def _with_sums(
    cap: float | None, window: int | None, scale: float | None, q: Tensor, k: Tensor, v: Tensor, *, attn_mask: Tensor
) -> tuple[Tensor, Tensor]:
    """An :data:`mmc.trie.lanes.Attend`: the kernel behind PyTorch's function on CPU, which forgets the sums it has made."""
    if cap or not hasattr(torch.ops.aten, _KERNEL) or v.shape[-1] != q.shape[-1]:
        scores = _scores(cap, scale, q, k, attn_mask).float()
        sums = torch.logsumexp(scores, dim=-1)
        out = torch.exp(scores - sums[..., None]).to(v.dtype) @ v
    else:
        out, sums = getattr(torch.ops.aten, _KERNEL)(q, k, v, attn_mask=attn_mask, scale=scale)
    if window is not None:
        # Of a row's part all keys may lie outside the window.
        unseen = ~(attn_mask > -torch.inf).any(-1)
        out, sums = out.masked_fill(unseen[..., None], 0.0), sums.masked_fill(unseen, -torch.inf)
    return out, sums


_KERNEL = "_scaled_dot_product_flash_attention_for_cpu"
"""PyTorch's, without a public name."""


def _in_products(
    cap: float | None, q: Tensor, k: Tensor, v: Tensor, *, attn_mask: Tensor, scale: float | None
) -> Tensor:
    """Attention as two products, the scores between them capped where a ``cap`` is given; a softmax in float32."""
    return torch.softmax(_scores(cap, scale, q, k, attn_mask), dim=-1, dtype=torch.float32).to(v.dtype) @ v


def _scores(cap: float | None, scale: float | None, q: Tensor, k: Tensor, attn_mask: Tensor) -> Tensor:
    factor = scale if scale is not None else q.shape[-1] ** -0.5
    if q.is_cuda and q.dtype != torch.float32:
        scores = torch.bmm(q[0], k[0].transpose(-1, -2), out_dtype=torch.float32)[None] * factor
    else:
        scores = q @ k.transpose(-1, -2) * factor
    if cap:
        scores = torch.tanh(scores / cap) * cap
    return scores + attn_mask


def _softcap(cap: float) -> Callable[..., Tensor]:
    def capped(score: Tensor, batch: Tensor, head: Tensor, row: Tensor, key: Tensor) -> Tensor:
        return torch.tanh(score / cap) * cap

    return capped


AttentionInterface.register(ATTENTION, trie_attention)
