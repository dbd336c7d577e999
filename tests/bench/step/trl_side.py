"""TRL's side of grpo_step.py: GRPOTrainer on the same work; prints one JSON line. Knows nothing of mmc.

    python trl_side.py MODEL_DIR WORK EXAMPLES ROLLOUTS NEW_TOKENS DTYPE STEPS

Eight runs a batch, gradients accumulated over the batches: in a single one the step with long prompts does not fit 24 GB.
With one rollout an example, two examples after each other are a group: TRL compares at least two.
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
from torch.utils.data import Sampler
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer
from trl.trainer.utils import RepeatSampler

BATCH = 8


class TimedTrainer(GRPOTrainer):
    """GRPOTrainer that remembers how long its steps and their sampling took."""

    apart = False
    steps: list[dict[str, float]]

    def _get_train_sampler(self, dataset: Any = None) -> Sampler[int]:
        if not self.apart:
            return super()._get_train_sampler(dataset)
        size = self.args.generation_batch_size
        return RepeatSampler(self.train_dataset, 1, size, repeat_count=self.args.steps_per_generation, shuffle=False)

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        start = time.perf_counter()
        output = super()._generate_and_score_completions(inputs)
        self.steps.append(
            {
                "start": start,
                "sampling": time.perf_counter() - start,
                "tokens": int(output["completion_mask"].sum()),
                "distinct": len({tuple(row) for row in output["prompt_ids"].tolist()}),
            }
        )
        return output


def rewards(completions: list[list[dict[str, str]]], **_: Any) -> list[float]:
    return [work.reward(completion[0]["content"]) for completion in completions]


def main(folder: str, kind: str, examples: int, rollouts: int, new_tokens: int, dtype: str, steps: int) -> None:
    prompts = [
        [{"role": "system", "content": system}, {"role": "user", "content": user}]
        for system, user in work.conversations(kind, examples * steps)
    ]
    trainer = TimedTrainer(
        model=AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)),
        processing_class=AutoTokenizer.from_pretrained(folder),
        reward_funcs=rewards,
        args=GRPOConfig(
            output_dir=tempfile.mkdtemp(),
            per_device_train_batch_size=BATCH,
            gradient_accumulation_steps=examples * rollouts // BATCH,
            num_generations=max(2, rollouts),
            max_completion_length=new_tokens,
            max_steps=steps,
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
    trainer.apart, trainer.steps = rollouts == 1, []
    start = time.perf_counter()
    trainer.train()
    ends = [step["start"] for step in trainer.steps[1:]] + [time.perf_counter()]
    starts = [start, *(step["start"] for step in trainer.steps[1:])]
    found = [
        {"seconds": end - begin, **{key: step[key] for key in ("sampling", "tokens", "distinct")}}
        for step, begin, end in zip(trainer.steps, starts, ends, strict=True)
    ]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps({"steps": found, "peak_gb": peak}))


if __name__ == "__main__":
    main(*sys.argv[1:3], *map(int, sys.argv[3:6]), sys.argv[6], int(sys.argv[7]))  # type: ignore[call-arg]
