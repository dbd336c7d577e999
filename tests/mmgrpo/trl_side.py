"""TRL's side of test_trl.py: one optimizer step of its GRPOTrainer a case, on completions and rewards that are given.

    python trl_side.py JOB.json

Runs in an environment of its own (`make peers`) and knows nothing of mmc. Sampling goes through TRL's `rollout_func`; rewards,
advantages, shuffling, accumulation, loss and backward are TRL's own, inside `GRPOTrainer.train`. For each case it leaves
CASE.safetensors (the gradients) and CASE.json (the loss, and the advantages in the job's order) in the job's folder `out`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import PeftConfig, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

Json = dict[str, Any]


class Gradients(TrainerCallback):
    """Keeps the gradients as the optimizer is about to see them."""

    def __init__(self) -> None:
        self.found: dict[str, torch.Tensor] = {}

    def on_pre_optimizer_step(self, *_: Any, model: torch.nn.Module, **__: Any) -> None:
        self.found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


class GivenTrainer(GRPOTrainer):
    """GRPOTrainer that is also told the old log-probabilities, and remembers its loss over a step."""

    old_T: list[torch.Tensor] | None = None
    """Of each completion, in the order of the rollout; None: TRL takes the policy's own."""
    total = 0.0

    def _generate_and_score_completions(self, inputs: list[Json]) -> Json:
        output = super()._generate_and_score_completions(inputs)
        if self.old_T is not None:
            assert "old_per_token_logps" not in output
            output["old_per_token_logps"] = pad_sequence(self.old_T, batch_first=True)
        return output

    def compute_loss(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = super().compute_loss(*args, **kwargs)
        self.total += loss.item()
        return loss


def given_reward(reward: list[float], **_: Any) -> list[float]:
    """The reward that came with a completion."""
    return reward


def make_trainer(job: Json, case: Json, gradients: Gradients) -> GivenTrainer:
    """A trainer with the job's model and adapter. The adapter is TRL's own, filled afterwards: so the reference is the model
    without adapter, where a model that comes with an adapter would be compared with a copy of that.
    """
    groups = job["groups"]

    def rollout(labels: list[str], _: GRPOTrainer) -> Json:
        assert labels == [str(g) for g, group in enumerate(groups) for _ in group["rewards"]]
        return {
            "prompt_ids": [group["prompt_ids"] for group in groups for _ in group["rewards"]],
            "completion_ids": [ids for group in groups for ids in group["completions"]],
            "logprobs": None,
            "reward": [reward for group in groups for reward in group["rewards"]],
        }

    config = PeftConfig.from_pretrained(job["adapter"])
    config.inference_mode = False
    trainer = GivenTrainer(
        model=AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32),
        processing_class=AutoTokenizer.from_pretrained(job["model"]),
        reward_funcs=given_reward,
        args=GRPOConfig(output_dir=job["out"], **FIXED, **case["options"]),
        train_dataset=Dataset.from_list([{"prompt": str(g)} for g in range(len(groups))]),
        peft_config=config,
        rollout_func=rollout,
        callbacks=[gradients],
    )
    set_peft_model_state_dict(trainer.model, load_file(Path(job["adapter"]) / "adapter_model.safetensors"))
    if case["old"] is not None:
        trainer.old_T = [torch.tensor(old) for old in case["old"]]
    return trainer


FIXED: Json = {
    "max_steps": 1,
    "max_grad_norm": 0.0,
    "shuffle_dataset": False,
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "report_to": "none",
    "save_strategy": "no",
    "logging_strategy": "no",
    "disable_tqdm": True,
}
"""Options that every case shares: one plain step in float32, groups in the job's order, gradients as they are."""


def run(job: Json, name: str) -> None:
    """One step of one case."""
    gradients = Gradients()
    trainer = make_trainer(job, job["cases"][name], gradients)
    trainer.train()
    out = Path(job["out"])
    save_file({key: grad.contiguous() for key, grad in gradients.found.items()}, out / f"{name}.safetensors")
    result = {"loss": trainer.total, "advantages": list(trainer._logs["advantages"])}
    (out / f"{name}.json").write_text(json.dumps(result))


def main() -> None:
    """Runs every case of the job."""
    job = json.loads(Path(sys.argv[1]).read_text())
    for name in job["cases"]:
        run(job, name)


if __name__ == "__main__":
    main()
