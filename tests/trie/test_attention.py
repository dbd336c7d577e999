"""The forest against one sequence at a time, through models of other attention kinds too."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PhiConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
)

from mmc.trie import attention, lanes
from mmc.trie.attention import _together, forest_layout, padded_keys
from mmc.trie.model import TrieModel
from mmc.trie.pack import pack

SMALL = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "initializer_range": 0.3,
}


NAMES = ["llama", "qwen2", "qwen3", "mistral", "phi", "phi3", "smollm3", "gemma2", "gemma3"]


def models() -> dict[str, PreTrainedModel]:
    torch.manual_seed(0)
    sliding = Gemma3TextConfig(
        **SMALL,
        sliding_window=4,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        final_logit_softcapping=5.0,
    )
    configs: dict[str, PreTrainedConfig] = {
        "llama": LlamaConfig(**SMALL),
        "qwen3": Qwen3Config(**SMALL),
        "gemma3": sliding,
    }
    configs |= {"qwen2": Qwen2Config(**SMALL), "mistral": MistralConfig(**SMALL, sliding_window=4)}
    configs |= {
        "phi3": Phi3Config(**SMALL, pad_token_id=0),
        "smollm3": SmolLM3Config(**SMALL, pad_token_id=0, no_rope_layer_interval=2),
    }
    configs["phi"] = PhiConfig(**{key: value for key, value in SMALL.items() if key != "head_dim"})
    configs["gemma2"] = Gemma2Config(**SMALL, sliding_window=4, attn_logit_softcapping=2.0, query_pre_attn_scalar=8)
    return {name: AutoModelForCausalLM.from_config(config).eval() for name, config in configs.items()}


def branching_sequences(count: int, seed: int) -> list[list[int]]:
    rng = random.Random(seed)
    root = [rng.randrange(50) for _ in range(7)]
    return [root[: rng.randint(0, 7)] + [rng.randrange(4) for _ in range(rng.randint(1, 12))] for _ in range(count)]


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("block_rows", "threads"), [(3, 1), (3, 5), (256, 2), (None, 1)])
def test_forest_logits_equal_one_sequence_at_a_time(
    name: str, block_rows: int | None, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``block_rows`` None: through FlexAttention, as on CUDA. Five threads attend to blocks in batches."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    if block_rows is None:
        monkeypatch.setattr(attention, "FLEX_ON", {"cuda", "cpu"})
        monkeypatch.setattr(attention, "_FLEX_WIDTH", 8)  # what these models have; compiled, it is refused
        monkeypatch.setattr(attention, "_blocks", None)
    model = models()[name]
    model.set_attn_implementation("eager")
    rows = branching_sequences(12, seed=1)
    with torch.no_grad():
        expected = [model(input_ids=torch.tensor([row]), use_cache=False).logits[0] for row in rows]
        trie, forest = TrieModel(model), pack(rows)
        layout = forest_layout(forest, trie.device, block_rows=block_rows or 256)
        hidden = trie.hidden(torch.from_numpy(forest.tokens_N), torch.from_numpy(forest.positions_N), layout)
        logits = trie.logits(hidden)
    if block_rows is not None:
        batches = {block.mask_BRK.shape[0] for block in layout.blocks(0)}  # made for the model's heads already
        assert (max(batches) > 1) == (threads == 5)
    for s, row in enumerate(rows):
        torch.testing.assert_close(logits[forest.index_SL[s, : len(row)]], expected[s], rtol=1e-4, atol=1e-4)


def test_blocks_are_one_batch_only_where_threads_would_be_idle() -> None:
    alike, few = [90, 96, 100, 100], [20, 90, 96, 100]
    assert _together(alike, [8] * 4, heads=3, threads=1) == 1
    assert _together(alike, [8] * 4, heads=4, threads=2) == 1
    assert _together(alike, [8] * 4, heads=3, threads=2) == 2
    assert _together(few, [8] * 4, heads=3, threads=2) == 1  # it would take as many keys as its neighbour
    assert _together(alike, [8] * 4, heads=2, threads=8) == 4
    assert _together(alike[:3], [8, 8, 5], heads=2, threads=8) == 2  # the last block is shorter


@pytest.mark.parametrize(("device", "width"), [("cpu", 4), ("cuda", 3)])
def test_keys_are_filled_up_to_a_multiple_on_cpu(device: str, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes, "KEYS_TOGETHER", 4)
    keys_BK, filled_BK = padded_keys([np.array([4, 5, 6]), np.array([1])], torch.device(device))
    assert keys_BK.tolist() == [[4, 5, 6, 0][:width], [1, 0, 0, 0][:width]]
    assert filled_BK.tolist() == [[True, True, True, False][:width], [True, False, False, False][:width]]


def test_where_flex_attention_fails_forests_go_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(device: str) -> None:
        raise RuntimeError(f"no compiler for {device}\nand so on")

    monkeypatch.setattr(attention, "_flex", broken)
    monkeypatch.setattr(attention, "FLEX_ON", kinds := {"cuda", "cpu"})
    monkeypatch.setattr("mmc.trie.model.FLEX_ON", kinds)
    monkeypatch.setattr(attention, "_FLEX_WIDTH", 8)
    with pytest.warns(UserWarning, match=r"FlexAttention does not work here.*no compiler for cpu'\]"):
        trie = TrieModel(models()["llama"])
    assert kinds == {"cuda"}
    with torch.no_grad():
        assert trie.hidden_of([[1, 2], [1, 3]])[0].shape == (3, 32)


def test_heads_too_narrow_for_flex_attention_take_it_from_no_other_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "_flex", None)
    monkeypatch.setattr(attention, "FLEX_ON", kinds := {"cuda", "cpu"})
    monkeypatch.setattr("mmc.trie.model.FLEX_ON", kinds)
    TrieModel(models()["llama"])
    assert kinds == {"cuda", "cpu"}


def test_a_model_whose_layers_are_not_plain_attention_is_refused() -> None:
    from transformers import MambaConfig

    config = MambaConfig(vocab_size=50, hidden_size=32, num_hidden_layers=2, state_size=4)
    with pytest.raises(ValueError, match="not plain attention"):
        TrieModel(AutoModelForCausalLM.from_config(config).eval())
