"""The blocks under ``compile``: prompt search and multi-module GRPO."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mmc.spec.keys import Keys


class HalvingSearch(Keys):
    """Successive halving over the cross product of instructions, alternatives and demonstration sets; no proposer needed."""

    algorithm: Literal["halving"] = "halving"
    trials: int = Field(12, gt=0)
    """Candidate programs drawn from the cross product, besides the start."""
    demos: int = Field(4, ge=0)
    """Most demonstrations put into one `demos` slot."""
    examples: int = Field(32, gt=0)
    """Dev examples that every candidate meets in the first round; each later round has twice as many and half the candidates."""
    bootstrap: int = Field(64, ge=0)
    """Training examples that the start program runs on to find demonstrations in successful trajectories."""


class Lora(Keys):
    """The adapter that is trained; names and defaults as in PEFT, all linear layers."""

    rank: int = Field(16, gt=0)
    alpha: float = Field(32.0, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    targets: str | list[str] = "all-linear"


class Clip(Keys):
    """Range of the token ratio: [1 - low, 1 + high]."""

    low: float = Field(0.2, ge=0)
    high: float = Field(0.2, ge=0)


class MmGrpo(Keys):
    """Multi-module GRPO (arXiv 2508.04660)."""

    algorithm: Literal["mmgrpo"] = "mmgrpo"
    steps: int = Field(50, gt=0)
    """Optimizer steps."""
    examples: int = Field(32, gt=0)
    """Training examples a step."""
    rollouts: int = Field(8, gt=1)
    """Runs of the whole program for each of them."""
    learning_rate: float = Field(6e-4, gt=0)
    warmup: int = Field(0, ge=0)
    """Steps over which the learning rate rises from 0."""
    decay: bool = False
    """Whether the learning rate falls linearly to a tenth at the last step."""
    temperature: float = Field(1.0, gt=0)
    """Of the rollouts."""
    loss: Literal["grpo", "dr_grpo", "dapo"] = "grpo"
    """grpo: mean over tokens, then calls; dr_grpo: sum over tokens divided by max_tokens; dapo: mean over all tokens."""
    normalize: Literal["std", "none"] = "std"
    """Whether advantages are divided by the group's standard deviation."""
    groups: Literal["ragged", "truncate"] = "ragged"
    """ragged: a group holds whatever runs made that call; truncate: call indices that some run lacks are dropped."""
    inner_epochs: int = Field(1, gt=0)
    """Optimizer passes over one step's rollouts."""
    clip: Clip = Clip()
    kl: float = Field(0.0, ge=0)
    """Weight of the KL penalty to the model without adapter."""
    max_grad_norm: float = Field(1.0, gt=0)
    failure_reward: float = 0.0
    """Reward of an interrupted run's earlier calls."""
    format_reward: float = 0.0
    """Reward of the call that interrupted it."""
    adapters: Literal["shared", "module"] = "shared"
    """One adapter for all trained modules, or one a module."""
    lora: Lora = Lora()
    evaluate_every: int = Field(0, ge=0)
    """Score dev every so many steps and keep the best adapter; 0: only at the end."""
