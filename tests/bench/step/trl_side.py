"""TRL's side of grpo_step.py: GRPOTrainer on the same work; prints one JSON line. Knows nothing of mmc.

    python trl_side.py MODEL_DIR EXAMPLES ROLLOUTS NEW_TOKENS DTYPE

One batch a group, gradients accumulated over the examples: in a single batch the step does not fit 24 GB here.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from typing import Any

import torch
import work
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer


class TimedTrainer(GRPOTrainer):
    """GRPOTrainer that remembers how long it sampled and how many tokens."""

    sampling = 0.0
    sampled = 0

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        start = time.perf_counter()
        output = super()._generate_and_score_completions(inputs)
        self.sampling += time.perf_counter() - start
        self.sampled += int(output["completion_mask"].sum())
        return output


def rewards(completions: list[list[dict[str, str]]], **_: Any) -> list[float]:
    return [work.reward(completion[0]["content"]) for completion in completions]


def main(folder: str, examples: int, rollouts: int, new_tokens: int, dtype: str) -> None:
    system = {"role": "system", "content": work.instruction()}
    prompts = [[system, {"role": "user", "content": work.question(text)}] for text in work.queries(examples)]
    trainer = TimedTrainer(
        model=AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)),
        processing_class=AutoTokenizer.from_pretrained(folder),
        reward_funcs=rewards,
        args=GRPOConfig(
            output_dir=tempfile.mkdtemp(),
            per_device_train_batch_size=rollouts,
            gradient_accumulation_steps=examples,
            num_generations=rollouts,
            max_completion_length=new_tokens,
            max_steps=1,
            learning_rate=1e-5,
            beta=0.0,
            temperature=1.0,
            bf16=False,
            gradient_checkpointing=False,
            use_cpu=True,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_dict({"prompt": prompts}),
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    start = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    found = {"seconds": seconds, "sampling": trainer.sampling, "tokens": trainer.sampled, "peak_gb": peak}
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:5]), sys.argv[5])  # type: ignore[call-arg]
