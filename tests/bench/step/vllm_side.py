"""vLLM's side of grpo_step.py: the completions of a GRPO step, without server or training; prints one JSON line.

    python vllm_side.py MODEL_DIR WORK EXAMPLES ROLLOUTS NEW_TOKENS DTYPE STEPS [adapter]

The prefix cache is on. Each step has other examples and is sampled twice: with what the steps before left in the cache ("kept"),
and after it was emptied, as it must be when the weights have changed ("sampling"). ``adapter`` samples with a LoRA adapter of
the shapes that the other sides train, with small random weights; every step has one of its own, loaded before it is timed.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

import torch
import work
from safetensors.torch import load_file, save_file
from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest

RANK = 16


def adapter(folder: str, step: int) -> LoRARequest:
    """A LoRA adapter in peft's format on every linear layer."""
    place = Path(tempfile.mkdtemp())
    torch.manual_seed(step)
    tensors, targets = {}, set()
    for name, weight in load_file(Path(folder) / "model.safetensors").items():
        path = name.removesuffix(".weight")
        if not path.endswith("_proj"):
            continue
        targets.add(path.rpartition(".")[2])
        for part, shape in (("lora_A", (RANK, weight.shape[1])), ("lora_B", (weight.shape[0], RANK))):
            tensors[f"base_model.model.{path}.{part}.weight"] = torch.randn(shape) * 1e-2
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": RANK, "target_modules": sorted(targets)}
    (place / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, place / "adapter_model.safetensors")
    return LoRARequest(f"step-{step}", step + 1, str(place))


def main(
    folder: str, kind: str, examples: int, rollouts: int, new_tokens: int, dtype: str, steps: int, lora: bool
) -> None:
    with_lora: dict[str, Any] = {"enable_lora": True, "max_lora_rank": RANK} if lora else {}
    llm = LLM(model=folder, dtype=dtype, enable_prefix_caching=True, max_model_len=2048, seed=0, **with_lora)
    settings = SamplingParams(n=rollouts, temperature=1.0, max_tokens=new_tokens, logprobs=0, seed=1)
    conversations = work.conversations(kind, examples * steps)
    found: dict[str, list[dict[str, Any]]] = {"steps": []}

    def sample(step: int, request: LoRARequest | None) -> tuple[float, int]:
        chosen = conversations[step * examples : (step + 1) * examples]
        messages = [[{"role": "system", "content": s}, {"role": "user", "content": u}] for s, u in chosen]
        start = time.perf_counter()
        outputs = llm.chat(messages, settings, use_tqdm=False, lora_request=request)
        seconds = time.perf_counter() - start
        return seconds, sum(len(one.token_ids) for output in outputs for one in output.outputs)

    for step in range(steps):
        request = adapter(folder, step) if lora else None
        if request:
            llm.llm_engine.add_lora(request)
        kept, _ = sample(step, request)
        llm.reset_prefix_cache()
        seconds, tokens = sample(step, request)
        found["steps"].append({"sampling": seconds, "kept": kept, "tokens": tokens})
    print(json.dumps(found))


if __name__ == "__main__":
    lora = sys.argv[8:] == ["adapter"]
    main(*sys.argv[1:3], *map(int, sys.argv[3:6]), sys.argv[6], int(sys.argv[7]), lora)  # type: ignore[call-arg]
