"""One model twice: in an engine, with a program's adapters and runs sampled from them; and plain."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma3TextConfig,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3Config,
)

from mmc.data import Example
from mmc.engine.local import LocalEngine
from mmc.mmgrpo.group import Rewards, form_groups
from mmc.mmgrpo.policy import Policy, make_policy
from mmc.mmgrpo.update import TrainingCall, UpdateReport, accumulate, module_terms, training_calls
from mmc.program.graph import Program
from mmc.program.run import RunSettings, run_all
from mmc.program.trajectory import Trajectory
from mmc.spec import load
from mmc.spec.model import MmGrpo

from .plain import Key, Result, Scores, Terms, calls_of, logprobs, plain_loss, weights_with

SPEC = """\
mmc: 1
name: exact
models: {policy: {type: local, source: "path:nowhere"}}
modules:
  think: {model: policy, template: think.j2, inputs: {q: str}, outputs: {t: str}, max_tokens: 5, train: true}
  rate:
    {model: policy, template: rate.j2, inputs: {t: str}, outputs: {mood: {enum: [hot, hotter, cold]}, n: int},
     constrain: true, max_tokens: 36, train: true}
  pick:
    {model: policy, template: pick.j2, inputs: {q: str, t: str}, outputs: {a: {enum: [red, green, grey]}},
     constrain: true, max_tokens: 8, train: true}
program:
  inputs: {q: str}
  max_calls: 4
  steps:
    - repeat: 3
      until: "{{ think.t < 'A' }}"
      steps: [{call: think}]
    - {call: rate, with: {t: "{{ think.t }}"}}
    - {call: pick, with: {t: "{{ think.t }}"}}
  outputs: {a: "{{ pick.a }}"}
metric: {type: exact, predicted: a, gold: gold}
"""
TEMPLATES = {
    "think": "{% user %}{{ q }}{% enduser %}",
    "rate": "{% user %}rate {{ t }}{% enduser %}",
    "pick": "{% user %}{{ q }} {{ t }}{% enduser %}",
}
TERMS = {"think": Terms(5), "rate": Terms(36), "pick": Terms(8)}
EXAMPLES = [Example(str(i), {"q": f"{i} asks", "gold": ["red", "green", "grey"][i % 3]}) for i in range(4)]
RANK, ALPHA = 3, 6.0
WINDOW = 8
"""Positions that the sliding layers of Gemma see."""

Tensors = dict[str, dict[str, Tensor]]
"""Adapter -> its tensors by name."""


def settings_of(loss: str = "grpo", **changes: Any) -> MmGrpo:
    """KL on, clipping tight on both sides; ``changes`` replace."""
    usual = {
        "loss": loss,
        "kl": 0.05,
        "clip": {"high": 0.15} if loss == "cispo" else {"low": 0.1, "high": 0.15},
        "lora": {"rank": RANK, "alpha": ALPHA},
        "adapters": "module",
        "temperature": 0.9,
        "examples": len(EXAMPLES),
        "rollouts": 5,
        "failure_reward": -0.1,
        "format_reward": -0.4,
    }
    return MmGrpo.model_validate(usual | changes)


def model_config(architecture: str, vocabulary: int, window: int = WINDOW) -> PreTrainedConfig:
    sizes = {
        "vocab_size": vocabulary,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "initializer_range": 0.2,
        "max_position_embeddings": 512,
    }
    if architecture != "gemma3":
        return {"llama": LlamaConfig, "qwen3": Qwen3Config}[architecture](**sizes)
    layers = ["sliding_attention", "full_attention"]
    return Gemma3TextConfig(
        **sizes, sliding_window=window, layer_types=layers, query_pre_attn_scalar=8, final_logit_softcapping=8.0
    )


def _write_program(folder: Path, spec: str) -> Program:
    for name, text in TEMPLATES.items():
        (folder / f"{name}.j2").write_text(text)
    (folder / "spec.yaml").write_text(spec)
    return Program.build(load(folder / "spec.yaml"))


@dataclass(eq=False)
class Lab:
    """See the module's text. Adapters have names here as in the engine."""

    engine: LocalEngine
    plain: PreTrainedModel
    program: Program
    policy: Policy
    start: Tensors
    """The adapters that sample the runs."""
    runs: Sequence[Trajectory] = ()

    @classmethod
    def make(cls, folder: Path, tokenizer: Path, architecture: str, config: MmGrpo, spec: str = SPEC) -> Lab:
        torch.manual_seed(0)
        words = AutoTokenizer.from_pretrained(tokenizer)
        model = AutoModelForCausalLM.from_config(model_config(architecture, len(words))).eval()
        # Some bytes that no text in here has end a turn too, so completions have all lengths.
        stops = [i for word, i in words.get_vocab().items() if "\u00c0" <= word <= "\u00ff"]
        model.generation_config.eos_token_id = [words.eos_token_id, *stops]
        plain = copy.deepcopy(model)
        plain.set_attn_implementation("eager")
        engine, program = LocalEngine(model, words), _write_program(folder, spec)
        policy = make_policy(program, {"policy": engine}, config, "exact", 0, {})
        program = program.with_adapters(policy.names)
        for name in policy.adapters:
            for key, tensor in engine.adapters.parameters(name).items():
                if ".lora_B." in key:
                    torch.nn.init.normal_(tensor.data, std=0.1)
        lab = cls(engine, plain, program, policy, {})
        lab.start = {name: {k: t.detach().clone() for k, t in found.items()} for name, found in lab.tensors.items()}
        return lab

    def sampled(self, config: MmGrpo) -> Lab:
        """With runs of the program."""
        sampling = RunSettings("weights", 0, 2, config.temperature)
        runs = run_all(self.program, {"policy": self.engine}, EXAMPLES, sampling, rollouts=config.rollouts)
        return replace(self, runs=runs)

    @property
    def tensors(self) -> Tensors:
        """The adapters in the engine."""
        return {name: self.engine.adapters.parameters(name) for name in self.policy.adapters}

    def moved(self, distance: float) -> Tensors:
        """The adapters some way from where they sampled."""
        torch.manual_seed(1)
        return {
            name: {key: tensor + distance * torch.randn_like(tensor) for key, tensor in found.items()}
            for name, found in self.start.items()
        }

    # --- the package ---

    def calls(self, config: MmGrpo) -> list[TrainingCall]:
        rewards = Rewards(config.failure_reward, config.format_reward)
        groups = form_groups(self.runs, list(self.policy.names), rewards, config.grouping)
        return training_calls(groups, config, module_terms(self.program.spec, self.policy.names))

    def step(
        self, config: MmGrpo, calls: Sequence[TrainingCall], distance: float, first: bool = True
    ) -> tuple[UpdateReport, Tensors]:
        """Report and gradients of one pass over ``calls`` with moved adapters."""
        moved = self.moved(distance)
        for name, found in self.tensors.items():
            for key, tensor in found.items():
                tensor.data.copy_(moved[name][key])
                tensor.grad = None
        report = UpdateReport()
        for name in self.policy.adapters:
            accumulate(self.engine, name, [c for c in calls if c.adapter == name], config, report, first)
        return report, {name: {k: t.grad for k, t in found.items()} for name, found in self.tensors.items()}

    # --- plain loops ---

    def plain_scores(self, adapters: Mapping[str, Mapping[str, Tensor]]) -> dict[Key, list[Tensor]]:
        """Log-probabilities of all calls with these adapters."""
        weights = {name: weights_with(self.plain, lora, ALPHA / RANK) for name, lora in adapters.items()}
        return {
            key: logprobs(self.plain, weights[self.policy.names[key.module]], call.completion)
            for key, call in calls_of(self.runs).items()
        }

    @cached_property
    def base(self) -> dict[Key, list[float]]:
        """Log-probabilities of all calls without adapters."""
        return {
            key: [value.item() for value in logprobs(self.plain, {}, call.completion)]
            for key, call in calls_of(self.runs).items()
        }

    @cache  # noqa: B019 - one graph for all losses of a module of tests
    def plain_at(self, distance: float) -> tuple[Tensors, dict[Key, list[Tensor]]]:
        """The moved adapters as leaves, and the log-probabilities made from them."""
        leaves = {
            name: {key: tensor.requires_grad_() for key, tensor in found.items()}
            for name, found in self.moved(distance).items()
        }
        return leaves, self.plain_scores(leaves)

    def plain_step(
        self,
        config: MmGrpo,
        distance: float,
        terms: Mapping[str, Terms] = TERMS,
        began: float | None = None,
    ) -> tuple[Result, Tensors]:
        """Loss and gradients of the same pass; ``began``: where the adapters stood when the step began."""
        leaves, now = self.plain_at(distance)
        first = {} if began is None else {k: [v.item() for v in found] for k, found in self.plain_at(began)[1].items()}
        result = plain_loss(self.runs, config, terms, Scores(now, self.base, first))
        return result, gradients(result.loss, leaves)


def gradients(loss: Tensor, leaves: Tensors) -> Tensors:
    """Of ``loss`` by every tensor of the adapters."""
    flat = [tensor for found in leaves.values() for tensor in found.values()]
    found = iter(torch.autograd.grad(loss, flat, retain_graph=True))
    return {name: {key: next(found) for key in tensors} for name, tensors in leaves.items()}


def open_engine(folder: Path) -> LocalEngine:
    """The model in ``folder`` in an engine of its own."""
    return LocalEngine(AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder))
