"""How many tokens a forward may hold, from the memory there is."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from mmc.trie.logprobs import Sampled, free_logprobs
from mmc.trie.model import CausalModel

SHARE = 1 / 2
"""Of the free memory that the activations of one forest may take. What a backward makes beside them is far less than the rest."""
LEAST, MOST = 512, 16384
"""Below, little is shared within a forest; above, no more is to be gained."""
MOST_ON_CPU = {4: 1024, 2: 2048}
"""Of training, by the bytes of a number. In float32 one forest of 1482 nodes was 8% faster than three parts of it, and took
1.7 times the memory; in bfloat16 with AMX one of 1414 was 1.2 to 1.5 times as fast as two parts, for less than a tenth more."""
PROBE = 64
"""Nodes of the forest that tells how much memory a node takes."""


def training_budget(model: CausalModel, free_bytes: int) -> int:
    """Nodes of a forest whose forward and backward fit ``free_bytes``: a power of two, so that a little more or less free
    memory makes no difference. The adapter to train must be active.
    """
    nodes = int(SHARE * free_bytes / bytes_per_node(model))
    most = MOST_ON_CPU[model.head.weight.element_size()] if model.device.type == "cpu" else MOST
    return min(most, max(LEAST, 1 << max(0, nodes.bit_length() - 1)))


def bytes_per_node(model: CausalModel) -> float:
    """What a forward with gradient keeps for the backward, for each node: measured on a small forest."""
    own = {p.untyped_storage().data_ptr() for p in model.model.parameters()}
    kept: dict[int, int] = {}
    alive: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)  # or another tensor could take its place
        return tensor

    ids = (np.arange(PROBE) * 37 % model.head.weight.shape[0]).tolist()
    with torch.enable_grad(), saved_tensors_hooks(keep, lambda tensor: tensor):
        _, _, nodes = free_logprobs(model, [Sampled(ids[:1], ids[1:], [None] * (PROBE - 1))])
    return sum(kept.values()) / nodes


def sampling_budget(model: CausalModel, total_bytes: int, share: float = 1 / 8) -> int:
    """Tokens whose keys and values take at most ``share`` of the machine's memory: of all, so that it is always the same."""
    config = model.model.config.get_text_config()
    queries = getattr(config, "num_attention_heads", None)
    if queries is None:
        return MOST  # no attention, and a state that does not grow
    heads = getattr(config, "num_key_value_heads", None) or queries
    width = getattr(config, "head_dim", None) or config.hidden_size // queries
    size: int = 2 * config.num_hidden_layers * heads * width * model.head.weight.element_size()
    return min(MOST, max(LEAST, int(share * total_bytes / size)))
