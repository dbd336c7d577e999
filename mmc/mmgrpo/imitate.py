"""One optimizer step of distillation: the weighted sum of -log p over completions, on the packed forests of mmGRPO."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mmc.engine.local import LocalEngine
from mmc.mmgrpo.update import Reduce, alone, step
from mmc.spec.model import Distill
from mmc.trie.logprobs import Sampled
from mmc.trie.parts import in_parts


@dataclass(frozen=True)
class Sentence:
    """One completion to learn; ``weight`` is that of each of its free tokens in the loss."""

    adapter: str
    sampled: Sampled
    weight: float


def imitate(
    engine: LocalEngine,
    optimizer: torch.optim.Optimizer,
    sentences: Sequence[Sentence],
    config: Distill,
    reduce: Reduce = alone,
) -> tuple[float, float]:
    """One step over ``sentences``: their loss, and the norm of the gradient."""
    loss = 0.0
    optimizer.zero_grad(set_to_none=True)
    for adapter in dict.fromkeys(one.adapter for one in sentences):
        mine = [one for one in sentences if one.adapter == adapter]
        with engine.adapters.active(adapter, train=True):
            for part in in_parts(engine.lm, [one.sampled for one in mine], config.forest_tokens):
                weights_F = torch.tensor([mine[i].weight for i in part.members for _ in mine[i].sampled.free_T])
                value = -(part.logprobs_F * weights_F.to(part.logprobs_F.device)).sum()
                value.backward()  # type: ignore[no-untyped-call]
                loss += value.item()
    return loss, step(optimizer, config.max_grad_norm, reduce)
