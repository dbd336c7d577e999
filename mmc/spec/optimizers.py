"""The blocks of ``compile`` that train weights: multi-module GRPO and distillation."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from mmc.spec.keys import Keys


class Lora(Keys):
    """The adapter that is trained; names and defaults as in PEFT, all linear layers."""

    rank: int = Field(16, gt=0)
    """Width of the adapter's inner layer: how much it can learn, and how large it is."""
    alpha: float = Field(32.0, gt=0)
    """Strength of the adapter; alpha / rank multiplies what it adds."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Share of the adapter's inputs that training sets to zero."""
    targets: str | list[str] = "all-linear"
    """Names of the layers that get an adapter."""
    dora: bool = False
    """Weight-decomposed LoRA: direction and magnitude are learned apart."""
    rslora: bool = False
    """Scales by alpha / sqrt(rank) instead of alpha / rank."""


class Clip(Keys):
    """Range of the ratio between the policy now and the one that sampled: [1 - low, 1 + high]."""

    low: float = Field(0.2, ge=0)
    """How far the ratio may fall below 1 before a token stops counting."""
    high: float = Field(0.2, ge=0)
    """How far it may rise above 1."""


class Grouping(Keys):
    """Which calls are compared with each other."""

    by: Literal["call", "trajectory", "merged"] = "call"
    """call: the calls of one module at one invocation index over the runs of an example (the paper), every call counts the
    same. trajectory: whole runs of an example, one advantage a run, every run counts the same. merged: advantages by call,
    every run counts the same."""
    uneven: Literal["ragged", "truncate", "fill"] = "ragged"
    """When runs make different numbers of calls. ragged: a group holds whatever runs made that call; truncate: call indices
    that some run lacks are dropped; fill: a run that lacks a call puts in another of its calls of that module."""
    fill: Literal["random", "last"] = "random"
    """Which of its calls a run puts in: one drawn at random (the paper), or its last (dspy.GRPO calls that `max`)."""
    select: int | None = Field(None, gt=1)
    """Keep this many members of a group, those with the highest variance of reward."""

    @model_validator(mode="after")
    def _every_key_acts(self) -> Self:
        if "fill" in self.model_fields_set and self.uneven != "fill":
            raise ValueError("`fill` does nothing without `uneven: fill`")
        if "uneven" in self.model_fields_set and self.by == "trajectory":
            raise ValueError("`uneven` does nothing with `by: trajectory`, whose groups hold whole runs")
        return self


class Importance(Keys):
    """Correction for tokens that another engine, model or program sampled: weight policy / sampler, cut at `cap`."""

    level: Literal["token", "sequence"] = "token"
    """Whether a token has the weight of itself or of its whole completion."""
    cap: float = Field(2.0, gt=0)
    """Largest weight a token or completion may get."""


class Teacher(Keys):
    """Somebody else whose runs on the same examples are learned from."""

    spec: str | None = None
    """Another spec or a build, relative to this file. Its calls of modules that this program trains are used; they are
    matched by the module's name and inputs."""
    model: str | None = None
    """An entry of `models`: this program, with every trained module on that model."""
    templates: dict[str, str] = {}
    """This program without adapters, with other templates for these modules: with demonstrations in them, say."""
    rollouts: int = Field(2, gt=0)
    """Runs an example."""
    temperature: float = Field(1.0, ge=0)
    """Of its runs; 0 is greedy."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.spec is None) == (self.model is None and not self.templates):
            raise ValueError("a teacher is another `spec`, or this program with another `model` or other `templates`")
        return self


class Tuning(Keys):
    """What every training of weights has: what is tuned, and how steps are made."""

    learning_rate: float = Field(6e-4, gt=0)
    """Step size of AdamW, at its highest."""
    warmup: int = Field(0, ge=0)
    """Steps over which the learning rate rises from 0."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """How the learning rate falls after the warm-up, to `floor` of it at the last step."""
    floor: float = Field(0.1, ge=0, le=1)
    """Share of the learning rate that is left at the last step."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Longer gradients are shortened to this norm."""
    forest_tokens: int | None = Field(None, gt=0)
    """Most distinct tokens in one forward and backward; gradients of a step with more are accumulated, and what its parts
    share is computed once. Found from the free memory before the first step, when left out."""
    adapters: Literal["shared", "module"] | dict[str, list[str]] = "shared"
    """One adapter for all trained modules, one a module, or named groups of modules: `{writers: [draft, revise]}`."""
    lora: Lora = Lora()
    """Size and kind of the adapters."""
    full: bool = False
    """Tune all weights instead of an adapter."""

    @model_validator(mode="after")
    def _tuning_keys_act(self) -> Self:
        if self.full and "lora" in self.model_fields_set:
            raise ValueError("`lora` does nothing with `full: true`")
        if self.full and self.adapters != "shared":
            raise ValueError("`full: true` tunes one set of weights; it needs `adapters: shared`")
        if "floor" in self.model_fields_set and self.schedule == "constant":
            raise ValueError("`floor` does nothing with `schedule: constant`")
        return self


class MmGrpo(Tuning):
    """Multi-module GRPO (arXiv 2508.04660)."""

    algorithm: Literal["mmgrpo"] = "mmgrpo"
    steps: int = Field(50, gt=0)
    """Optimizer steps (times `inner_epochs`)."""
    examples: int = Field(32, gt=0)
    """Training examples a step."""
    rollouts: int = Field(8, gt=1)
    """Runs of the whole program for each of them."""
    temperature: float = Field(1.0, gt=0)
    """Of the rollouts."""
    tree: list[int] = []
    """Samples at each LM call of a run, instead of independent runs: [4, 2] draws the first call four times, the second
    twice after each of them, and goes on from there; their product is `rollouts`. Calls from one state are compared with
    each other, and a call's reward is the mean over the runs that go through it."""
    loss: Literal["grpo", "dr_grpo", "dapo", "gspo", "cispo"] = "grpo"
    """grpo: mean over tokens, then calls; dr_grpo: sum over tokens divided by max_tokens; dapo: mean over all tokens; gspo: like
    grpo with the ratio of whole completions; cispo: mean over all tokens, the clipped ratio as a weight."""
    normalize: Literal["std", "batch", "leave_one_out", "none"] = "std"
    """What rewards less their group's mean are divided by: the group's standard deviation; that of the whole step; nothing.
    leave_one_out: less the mean of the others in the group, divided by nothing."""
    grouping: Grouping = Grouping()
    """Which calls are compared with each other."""
    inner_epochs: int = Field(1, gt=0)
    """Optimizer passes over one step's rollouts."""
    clip: Clip = Clip()
    """Bounds of the policy's change within a step; acts with `inner_epochs` above 1."""
    importance: Importance = Importance()
    """Correction for what another engine, model or program sampled; acts with `teachers`, a `sampler` or in half precision."""
    kl: float = Field(0.0, ge=0)
    """Weight of the KL penalty to the model without adapter."""
    resample: int = Field(0, ge=0)
    """How many times a step may take new examples in the place of those whose runs all score the same."""
    staleness: int = Field(0, ge=0, le=8)
    """By how many steps the weights that sample may be older than those in training. 0: a step samples, then trains. Above, the
    model's `sampler` draws the runs of so many steps to come while this one trains; `importance` corrects for their age."""
    failure_reward: float = 0.0
    """Reward of an interrupted run's earlier calls."""
    format_reward: float = 0.0
    """Reward of a completion from which nothing can be read; with each output that can be, it comes nearer to the failure
    reward."""
    teachers: list[Teacher] = []
    """Others whose runs join the groups, with off-policy correction."""
    evaluate_every: int = Field(0, ge=0)
    """Score dev every so many steps and after the last, and keep the best adapter; 0: keep the last, unseen."""
    patience: int = Field(0, ge=0)
    """Stop after this many evaluations in a row without a better score; 0: never."""

    @model_validator(mode="after")
    def _every_key_acts(self) -> Self:
        if self.patience and not self.evaluate_every:
            raise ValueError("`patience` does nothing without `evaluate_every`")
        if self.staleness >= self.steps:
            raise ValueError("`staleness` must be less than `steps`: there are no further steps to sample for")
        if self.grouping.select is not None and self.grouping.select >= self.rollouts + sum(
            t.rollouts for t in self.teachers
        ):
            raise ValueError("`grouping.select` does nothing when it is not less than the runs of an example")
        if self.tree:
            self._check_tree()
        if "cap" in self.importance.model_fields_set and self.importance.cap < 1:
            raise ValueError("`importance.cap` below 1 would shrink the tokens of the policy itself")
        if self.grouping.by == "merged" and self.loss in ("dapo", "cispo"):
            raise ValueError(f"`by: merged` does nothing with `loss: {self.loss}`, where every token counts the same")
        if self.loss == "cispo" and "low" in self.clip.model_fields_set:
            raise ValueError("`clip.low` does nothing with `loss: cispo`, which bounds the ratio from above only")
        return self

    def _check_tree(self) -> None:
        product = 1
        for width in self.tree:
            product *= width
        if product != self.rollouts or min(self.tree) < 1:
            raise ValueError(f"`tree` draws {product} runs in all, but `rollouts` is {self.rollouts}")
        if self.grouping != Grouping():
            raise ValueError("`grouping` does nothing with `tree`, which compares the calls made from one state")
        if self.teachers:
            raise ValueError("`teachers` cannot join the groups of a `tree`: their calls start from other states")


class Distill(Tuning):
    """Supervised training on the calls of passing runs: the program's own, or those of teachers."""

    algorithm: Literal["sft"] = "sft"
    examples: int = Field(128, gt=0)
    """Training examples to run."""
    rollouts: int = Field(4, ge=0)
    """The program's own runs for each of them."""
    temperature: float = Field(1.0, ge=0)
    """Of the program's own runs."""
    teachers: list[Teacher] = []
    """Others that are run on the same examples."""
    by: Literal["run", "call"] = "run"
    """What is learned from: the calls of whole runs that pass, or single calls of finished runs, each by its own reward: the
    run's, and `shaping`. Calls of one example, module and invocation index are compared."""
    threshold: float = 1.0
    """The reward from which a run, or a call, passes."""
    per_example: int = Field(2, gt=0)
    """Most that is used for one example (of calls: for each place in it), the best first; different ones only."""
    epochs: int = Field(2, gt=0)
    """Passes over the runs that are learned from."""
    batch: int = Field(32, gt=0)
    """Runs an optimizer step."""
    learning_rate: float = Field(3e-4, gt=0)
    """Step size of AdamW, at its highest."""

    @model_validator(mode="after")
    def _somebody_runs(self) -> Self:
        if not self.rollouts and not self.teachers:
            raise ValueError("with `rollouts: 0` somebody must teach: add `teachers`")
        if not self.rollouts and "temperature" in self.model_fields_set:
            raise ValueError("`temperature` does nothing with `rollouts: 0`; teachers have their own")
        return self
