"""vLLM's side of grpo_step.py: the completions of a GRPO step, without adapter, server or training; prints one JSON line.

    python vllm_side.py MODEL_DIR WORK EXAMPLES ROLLOUTS NEW_TOKENS DTYPE STEPS

The prefix cache is on. Each step has other examples and is sampled twice: with what the steps before left in the cache ("kept"),
and after it was emptied, as it must be when the weights have changed ("sampling").
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

import work
from vllm import LLM, SamplingParams


def main(folder: str, kind: str, examples: int, rollouts: int, new_tokens: int, dtype: str, steps: int) -> None:
    llm = LLM(model=folder, dtype=dtype, enable_prefix_caching=True, max_model_len=2048, seed=0)
    settings = SamplingParams(n=rollouts, temperature=1.0, max_tokens=new_tokens, logprobs=0, seed=1)
    conversations = work.conversations(kind, examples * steps)
    found: dict[str, list[dict[str, Any]]] = {"steps": []}

    def sample(step: int) -> tuple[float, int]:
        chosen = conversations[step * examples : (step + 1) * examples]
        messages = [[{"role": "system", "content": s}, {"role": "user", "content": u}] for s, u in chosen]
        start = time.perf_counter()
        outputs = llm.chat(messages, settings, use_tqdm=False)
        seconds = time.perf_counter() - start
        return seconds, sum(len(one.token_ids) for output in outputs for one in output.outputs)

    for step in range(steps):
        kept, _ = sample(step)
        llm.reset_prefix_cache()
        seconds, tokens = sample(step)
        found["steps"].append({"sampling": seconds, "kept": kept, "tokens": tokens})
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:3], *map(int, sys.argv[3:6]), sys.argv[6], int(sys.argv[7]))  # type: ignore[call-arg]
