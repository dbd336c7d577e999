"""A causal LM of transformers, run over a forest: hidden states of its nodes, logits where they are needed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from mmc.trie.attention import ATTENTION, Layout

Ids = Any


class TrieModel:
    """Wraps ``model`` (a ``...ForCausalLM``, in place) so that it attends along a forest.

    Raises ValueError when the model's layers do not go through transformers' attention interface, or when its logits are
    not head(backbone(x)).
    """

    def __init__(self, model: PreTrainedModel) -> None:
        model.set_attn_implementation(ATTENTION)
        self.model = model
        self.backbone = model.get_decoder()
        self.head = model.get_output_embeddings()
        config = model.config.get_text_config()
        self.softcap: float | None = getattr(config, "final_logit_softcapping", None)
        self.scale: float = getattr(config, "logit_scale", None) or 1.0 / (getattr(config, "logits_scaling", None) or 1.0)
        self._verify()

    @property
    def device(self) -> torch.device:
        return self.head.weight.device

    def hidden(self, tokens_N: Tensor, positions_N: Tensor, layout: Layout) -> Tensor:
        """Hidden states (N, hidden) of N nodes under ``layout``."""
        output = self.backbone(
            input_ids=tokens_N[None].to(self.device),
            position_ids=positions_N[None].to(self.device),
            use_cache=False,
            trie=layout,
        )
        return output.last_hidden_state[0]

    def logits(self, hidden_NH: Tensor) -> Tensor:
        """Next-token logits (N, vocabulary) in float32."""
        logits = self.head(hidden_NH).float() * self.scale
        if self.softcap is not None:
            logits = torch.tanh(logits / self.softcap) * self.softcap
        return logits

    @torch.no_grad()
    def _verify(self) -> None:
        from mmc.trie.attention import forest_layout
        from mmc.trie.pack import pack

        forest = pack([[1, 2, 3, 4]])
        tokens, positions = torch.from_numpy(forest.tokens_N), torch.from_numpy(forest.positions_N)
        ours = self.logits(self.hidden(tokens, positions, forest_layout(forest, self.device)))
        self.model.set_attn_implementation("eager")
        theirs = self.model(input_ids=tokens[None].to(self.device), use_cache=False).logits[0].float()
        self.model.set_attn_implementation(ATTENTION)
        tolerance = 1e-3 if self.head.weight.dtype == torch.float32 else 0.1
        if (ours - theirs).abs().max() > tolerance * theirs.abs().max().clamp(min=1.0):
            raise ValueError(f"{type(self.model).__name__} does not run on the trie: its layers are not plain attention")
