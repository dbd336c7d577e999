"""A causal LM of transformers, run over a forest: hidden states of its nodes, logits where they are needed."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from mmc.trie.attention import ATTENTION, FLEX_ON, Layout, forest_layout
from mmc.trie.fixed import MemoryPool
from mmc.trie.pack import Ints, pack


class CausalModel:
    """A ``...ForCausalLM`` taken apart: a backbone that gives hidden states, and a head from these to logits.

    Subclasses compute the hidden states of many sequences. Raises ValueError when the model cannot be taken apart.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.backbone = model.get_decoder()
        self.head = model.get_output_embeddings()
        if self.head is None or self.backbone is model:
            raise ValueError(f"{type(model).__name__} has no backbone and head of its own")
        config = model.config.get_text_config()
        self.softcap: float | None = getattr(config, "final_logit_softcapping", None)
        divisor: float = getattr(config, "logits_scaling", None) or 1.0
        self.scale: float = getattr(config, "logit_scale", None) or 1.0 / divisor

    def hidden_of(self, sequences: Sequence[Sequence[int]]) -> tuple[Tensor, Ints, int]:
        """Hidden states (N, hidden) after all tokens of ``sequences``, which of them belongs to a sequence and depth (S, L), and
        how many tokens were computed.
        """
        raise NotImplementedError

    @property
    def device(self) -> torch.device:
        device: torch.device = self.head.weight.device
        return device

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

    @property
    def tolerance(self) -> float:
        """How far two ways to compute the same logits may be apart, as a share of their norm. Half precision differs by some
        percent however it is computed; a token that sees what it should not changes the logits altogether.
        """
        return 1e-3 if self.head.weight.dtype == torch.float32 else 0.3

    def differs(self, ours_NV: Tensor, theirs_NV: Tensor) -> bool:
        """Whether logits differ by more than rounding."""
        centred = theirs_NV - theirs_NV.mean(dim=-1, keepdim=True)
        return bool((ours_NV - theirs_NV).norm() > self.tolerance * centred.norm().clamp(min=1.0))

    def probe(self) -> list[list[int]]:
        """Two sequences of token ids that part after two tokens."""
        unit = max(1, self.head.weight.shape[0] // 7)
        return [[unit, 2 * unit, 3 * unit, 4 * unit], [unit, 2 * unit, 4 * unit, 3 * unit]]


class TrieModel(CausalModel):
    """Runs ``model`` (in place) over forests: it attends to a token's ancestors.

    Raises ValueError when the model's layers do not go through transformers' attention interface, or when its logits
    are not head(backbone(x)).
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(model)
        self.unused_memory = MemoryPool()
        implementation = model.config._attn_implementation
        try:
            self._verify_or_without_flex()
        except ValueError:
            model.set_attn_implementation(implementation)
            raise
        model.set_attn_implementation(ATTENTION)

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

    def hidden_of(self, sequences: Sequence[Sequence[int]]) -> tuple[Tensor, Ints, int]:
        forest = pack(sequences)
        layout = forest_layout(forest, self.device)
        tokens, positions = torch.from_numpy(forest.tokens_N), torch.from_numpy(forest.positions_N)
        return self.hidden(tokens, positions, layout), forest.index_SL, len(forest)

    def _verify_or_without_flex(self) -> None:
        """FlexAttention is compiled for a device by other people's tools: where these fail, forests go in blocks there."""
        kind = self.device.type
        try:
            self._verify()
        except Exception as error:
            if isinstance(error, ValueError) or kind not in FLEX_ON:
                raise
            FLEX_ON.discard(kind)
            cause = str(error).strip().splitlines()[:1]
            warnings.warn(f"FlexAttention does not work here, so training is slower: {cause}", stacklevel=4)
            self._verify()

    @torch.no_grad()
    def _verify(self) -> None:
        """Compares two branches with one sequence at a time: a recurrent layer would leak from one into the other."""
        rows = self.probe()
        self.model.set_attn_implementation(ATTENTION)
        hidden_NH, index_SL, _ = self.hidden_of(rows)
        ours_NV = self.logits(hidden_NH)
        self.model.set_attn_implementation("eager")
        for s, row in enumerate(rows):
            theirs = self.model(input_ids=torch.tensor([row], device=self.device), use_cache=False).logits[0].float()
            if self.differs(ours_NV[torch.from_numpy(index_SL[s]).to(self.device)], theirs):
                name = type(self.model).__name__
                raise ValueError(f"{name} does not run on the trie: its layers are not plain attention")
