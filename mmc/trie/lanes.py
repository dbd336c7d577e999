"""Lanes: slots side by side for what one path of the cache has for itself, so that its keys need not be gathered.

A stream that shares nothing any more is one row that sees keys of its own. Lanes of one width lie at multiples of it, so the
keys of many of them are one view of the memory, and their rows one batch. What such a row shares with others comes before
its lane: it is attended to in blocks, as everything else is, and both parts are put together by the sums of their weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

LANES_ON = {"cpu"}
"""Kinds of devices where rows are attended to in lanes; on CUDA every row of a small step attends to all slots at once."""
LEAST_OWN = 32
"""Tokens that a path must have for itself to get a lane."""
LEAST_ROOM = 64
"""Tokens that a new lane has room for at least, beyond those that it starts with."""
WORTH_PAIRS = 8192
"""(row, key) pairs of attention that lanes must save in a step: about what their batch and putting the parts together cost."""
MOST_COPIED = 64
"""Tokens before a path's own that are copied into its lane: then all that its row sees is there, and no block is needed."""
GAP_KEYS = 512
"""Keys of lanes that no row sees, which a batch rather takes along than being two."""
KEYS_TOGETHER = 32
"""The number of a batch's keys, of lanes or of a block, is filled up to a multiple of this on CPU. With another one the kernel
took 1.2 to 1.4 times as long forward and 1.1 to 1.2 times with its backward (bfloat16 with AMX, 768 rows over 700 to 960 keys);
at most 1.2 in float32.
"""

Attend = Callable[..., tuple[Tensor, Tensor]]
"""Attention that also gives the logarithm of the sum of a row's weights before they are normalised, (B, heads, rows)."""


@dataclass(eq=False)
class Lane:
    """``width`` slots from ``start`` on, which one path fills in order."""

    start: int
    width: int
    copied: int = 0
    """Of its first slots those that repeat what comes before the path's own tokens: all of it, or nothing."""
    filled: int = 0
    segments: int = 0
    """That have slots in it; without any it is free."""

    @property
    def room(self) -> int:
        return self.width - self.filled

    def take(self, count: int) -> NDArray[np.int64]:
        """The next ``count`` slots."""
        self.filled += count
        return np.arange(self.start + self.filled - count, self.start + self.filled)

    def ends_at(self, slot: int) -> bool:
        """Whether a path that ends in ``slot`` can go on in the lane."""
        return slot == self.start + self.filled - 1


def filled_up(count: int, device: torch.device) -> int:
    """``count`` keys or some more, as many as ``device`` likes."""
    multiple = KEYS_TOGETHER if device.type == "cpu" else 1
    return -(-count // multiple) * multiple


def width_for(count: int) -> int:
    """Of a lane that starts with ``count`` tokens. Few widths, so that many lanes are one batch."""
    return 1 << (count + LEAST_ROOM - 1).bit_length()


@dataclass(frozen=True, eq=False)
class Lanes:
    """T rows of a forward, the first of which sees slots from ``start`` on, the next ``width`` further, and so on."""

    rows_T: Tensor
    """Rows of the forward; a lane among the others that no row stands in has any."""
    start: int
    width: int
    mask_BRK: Tensor
    """(T, 1, K): which of the first K slots of its lane a row sees."""
    distance_BRK: Tensor
    """How many positions each lies before the row."""


@dataclass(frozen=True)
class Standing:
    """A row of a forward that stands in a lane, at ``position``, and sees its first ``seen`` slots."""

    row: int
    lane: Lane
    seen: int
    position: int


def batches(standing: Sequence[Standing]) -> list[list[Standing | None]]:
    """Rows that are one batch, in the order of their lanes; None stands for a lane between them that no row stands in."""
    found: list[list[Standing | None]] = []
    last: Standing | None = None
    for one in sorted(standing, key=lambda one: (one.lane.width, one.lane.start)):
        gap = 0
        if last is not None and one.lane.width == last.lane.width:
            gap = (one.lane.start - last.lane.start) // one.lane.width - 1
        if last is None or one.lane.width != last.lane.width or gap * one.seen > GAP_KEYS:
            found.append([])
            gap = 0
        found[-1] += [*[None] * gap, one]
        last = one
    return found


def lanes_of(batch: Sequence[Standing | None], positions: NDArray[np.int64], device: torch.device) -> Lanes:
    """The batch as attention takes it; ``positions`` of the tokens in all slots."""
    known = [one for one in batch if one is not None]
    first = known[0].lane
    keys = min(first.width, filled_up(max(one.seen for one in known), device))
    # A lane without a row has the first row look at its first slot: what nobody asks for must still be a number.
    seen_T1 = np.array([[1 if one is None else one.seen] for one in batch])
    position_T1 = np.array([[0 if one is None else one.position] for one in batch])
    slots_TK = first.start + first.width * np.arange(len(batch))[:, None] + np.arange(keys)
    rows_T = np.array([0 if one is None else one.row for one in batch])
    return Lanes(
        torch.from_numpy(rows_T).to(device),
        first.start,
        first.width,
        torch.from_numpy((np.arange(keys) < seen_T1)[:, None]).to(device),
        torch.from_numpy((position_T1 - positions[slots_TK])[:, None]).to(device),
    )


@dataclass(frozen=True)
class Places:
    """Where the rows of a forward find their parts: among the rows in lanes and among those in blocks, each one after the other.

    One past the last of them: such a row has no such part.
    """

    in_lanes_R: Tensor
    in_blocks_R: Tensor

    @staticmethod
    def of(
        rows: int, lanes: Iterable[Sequence[Standing | None]], blocks: Iterable[range], device: torch.device
    ) -> Places:
        """``blocks``: the rows of each."""
        standing = [one for batch in lanes for one in batch]
        covered = [row for block in blocks for row in block]
        in_lanes, in_blocks = np.full(rows, len(standing)), np.full(rows, len(covered))
        for place, one in enumerate(standing):
            if one is not None:
                in_lanes[one.row] = place
        in_blocks[covered] = np.arange(len(covered))
        return Places(torch.from_numpy(in_lanes).to(device), torch.from_numpy(in_blocks).to(device))


def in_lanes(
    attend: Attend, lanes: Lanes, query_NQD: Tensor, key_MHD: Tensor, value_MHD: Tensor, mask: Tensor
) -> tuple[Tensor, Tensor]:
    """Attention of the rows of ``lanes``: (T, Hq, D), and the logarithms of the sums of weights (T, Hq)."""
    count, _, keys = lanes.mask_BRK.shape
    heads, shared = query_NQD.shape[1], key_MHD.shape[1]
    q = query_NQD.index_select(0, lanes.rows_T).view(count, shared, heads // shared, -1)
    end = lanes.start + count * lanes.width
    k, v = (
        memory[lanes.start : end].view(count, lanes.width, shared, -1)[:, :keys].transpose(1, 2)
        for memory in (key_MHD, value_MHD)
    )
    out, sums = attend(q, k, v, attn_mask=mask)
    return out.reshape(count, heads, -1), sums.reshape(count, heads)


def together(lanes: Sequence[tuple[Tensor, Tensor]], blocks: Sequence[tuple[Tensor, Tensor]], places: Places) -> Tensor:
    """Both parts of all rows put together, (R, Hq, D)."""
    if not blocks:
        return torch.cat([out for out, _ in lanes]).index_select(0, places.in_lanes_R)
    one, other = (
        (
            _found([out for out, _ in part], 0.0, place_R).float(),
            _found([sums for _, sums in part], -torch.inf, place_R),
        )
        for part, place_R in ((lanes, places.in_lanes_R), (blocks, places.in_blocks_R))
    )
    # The other's share of all weights.
    share_RQ = torch.sigmoid(other[1] - one[1])
    return torch.lerp(one[0], other[0], share_RQ[..., None]).to(lanes[0][0].dtype)


def _found(parts: Sequence[Tensor], missing: float, place_R: Tensor) -> Tensor:
    """Rows of ``parts``, one after the other; one past the last is ``missing``."""
    return torch.cat([*parts, torch.full_like(parts[0][:1], missing)]).index_select(0, place_R)
