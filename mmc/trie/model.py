"""A causal LM of transformers, run over a forest: hidden states of its nodes, logits where they are needed."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from mmc.trie.attention import ATTENTION, Layout, forest_layout
from mmc.trie.pack import pack


class TrieModel:
    """Wraps ``model`` (a ``...ForCausalLM``, in place) so that it attends along a forest.

    Raises ValueError when the model's layers do not go through transformers' attention interface, or when its logits
    are not head(backbone(x)).
    """

    def __init__(self, model: PreTrainedModel) -> None:
        model.set_attn_implementation(ATTENTION)
        self.model = model
        self.backbone = model.get_decoder()
        self.head = model.get_output_embeddings()
        config = model.config.get_text_config()
        self.softcap: float | None = getattr(config, "final_logit_softcapping", None)
        divisor: float = getattr(config, "logits_scaling", None) or 1.0
        self.scale: float = getattr(config, "logit_scale", None) or 1.0 / divisor
        self._verify()

    @property
    def device(self) -> torch.device:
        device: torch.device = self.head.weight.device
        return device

    def hidden(self, tokens_N: Tensor, positions_N: Tensor, layout: Layout) -> Tensor:
        """Hidden states (N, hidden) of N nodes under ``layout``."""
        output = self.backbone(
            input_ids=tokens_N[None].to(self.device),
            position_ids=positions_N[None].to(self.device),
            use_cache=False,
            trie=layout,
        )
        hidden: Tensor = output.last_hidden_state[0]
        return hidden

    def logits(self, hidden_NH: Tensor) -> Tensor:
        """Next-token logits (N, vocabulary) in float32."""
        return self.finish(self.head(hidden_NH))

    def finish(self, raw_NV: Tensor) -> Tensor:
        """Logits in float32 from what the head gave; the same memory where nothing is to be done."""
        logits = raw_NV.float()
        if self.scale != 1.0:
            logits = logits * self.scale
        if self.softcap is not None:
            logits = torch.tanh(logits / self.softcap) * self.softcap
        return logits

    def slope(self, logits_NV: Tensor) -> Tensor | float | None:
        """The derivative of :meth:`finish` where it gave ``logits_NV``; None where it is 1."""
        if self.softcap is not None:
            return (1 - (logits_NV / self.softcap).square()) * self.scale
        return self.scale if self.scale != 1.0 else None

    @torch.no_grad()
    def _verify(self) -> None:
        """Compares two branches with one sequence at a time: a recurrent layer would leak from one into the other."""
        unit = max(1, self.head.weight.shape[0] // 7)
        rows = [[unit, 2 * unit, 3 * unit, 4 * unit], [unit, 2 * unit, 4 * unit, 3 * unit]]
        forest = pack(rows)
        tokens, positions = torch.from_numpy(forest.tokens_N), torch.from_numpy(forest.positions_N)
        ours_NV = self.logits(self.hidden(tokens, positions, forest_layout(forest, self.device)))
        self.model.set_attn_implementation("eager")
        # Half precision differs by some percent however it is computed; a leak changes the logits altogether.
        tolerance = 1e-3 if self.head.weight.dtype == torch.float32 else 0.3
        for s, row in enumerate(rows):
            theirs = self.model(input_ids=torch.tensor([row], device=self.device), use_cache=False).logits[0].float()
            difference = ours_NV[torch.from_numpy(forest.index_SL[s]).to(self.device)] - theirs
            centred = theirs - theirs.mean(dim=-1, keepdim=True)
            if difference.norm() > tolerance * centred.norm().clamp(min=1.0):
                name = type(self.model).__name__
                raise ValueError(f"{name} does not run on the trie: its layers are not plain attention")
        self.model.set_attn_implementation(ATTENTION)
