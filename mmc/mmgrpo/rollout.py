"""Which examples a step takes. Derived from (seed, step) alone, so a resumed training goes on with the same data."""

from __future__ import annotations

import random
from collections.abc import Sequence

from mmc.data import Example
from mmc.engine.base import seed_of


def batch(examples: Sequence[Example], count: int, step: int, seed: int) -> list[Example]:
    """The examples of one step: ``count`` in a row from an endless line of shuffled epochs; distinct when enough."""
    count = min(count, len(examples))
    start = step * count
    chosen: dict[str, Example] = {}
    position = start
    while len(chosen) < count:
        epoch, offset = divmod(position, len(examples))
        example = _epoch(examples, epoch, seed)[offset]
        chosen.setdefault(example.id, example)
        position += 1
    return list(chosen.values())


def _epoch(examples: Sequence[Example], epoch: int, seed: int) -> list[Example]:
    shuffled = list(examples)
    random.Random(seed_of(seed, "epoch", epoch)).shuffle(shuffled)
    return shuffled
