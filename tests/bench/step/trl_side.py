"""TRL's side of grpo_step.py: GRPOTrainer on the same work; prints one JSON line. Knows nothing of mmc.

    python trl_side.py MODEL_DIR WORK EXAMPLES ROLLOUTS NEW_TOKENS DTYPE STEPS

On a CPU eight runs a batch, gradients accumulated over the batches: in a single one the step with long prompts does not fit
24 GB. On a GPU all runs are one batch. TRL_SETTINGS in the environment (JSON) adds to its GRPOConfig.
With one rollout an example, two examples after each other are a group: TRL compares at least two.
"""

from __future__ import annotations

import json
import os
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

CUDA = torch.cuda.is_available()
# cuDNN's attention gives NaN gradients for rows of padding, which see nothing; after the first update nothing could be sampled.
torch.backends.cuda.enable_cudnn_sdp(False)


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
    batch = examples * rollouts if CUDA else 8
    trainer = TimedTrainer(
        model=AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)),
        processing_class=AutoTokenizer.from_pretrained(folder),
        reward_funcs=rewards,
        args=GRPOConfig(
            output_dir=tempfile.mkdtemp(),
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=examples * rollouts // batch,
            num_generations=max(2, rollouts),
            max_completion_length=new_tokens,
            max_steps=steps,
            learning_rate=1e-5,
            beta=0.0,
            temperature=1.0,
            bf16=CUDA,
            gradient_checkpointing=False,
            use_cpu=not CUDA,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
            **json.loads(os.environ.get("TRL_SETTINGS", "{}")),
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
    peak = torch.cuda.max_memory_allocated() / 2**30 if CUDA else peak
    print(json.dumps({"steps": found, "peak_gb": peak}))


if __name__ == "__main__":
    main(*sys.argv[1:3], *map(int, sys.argv[3:6]), sys.argv[6], int(sys.argv[7]))  # type: ignore[call-arg]
