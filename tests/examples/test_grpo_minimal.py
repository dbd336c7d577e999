"""The example says the same as the package: groups, advantages, weights and loss; and it runs."""

from __future__ import annotations

import importlib.util
import random
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from mmc.engine.adapters import LoraOptions
from mmc.engine.base import Completion
from mmc.engine.local import LocalEngine
from mmc.engine.weights import find, load
from mmc.mmgrpo import advantage, group, loss, update
from mmc.program import trajectory
from mmc.spec.model import MmGrpo
from mmc.tool.bm25 import Bm25
from mmc.trie.logprobs import free_logprobs

FILE = Path(__file__).parents[2] / "examples/grpo_minimal.py"


@pytest.fixture
def minimal(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    found = importlib.util.spec_from_file_location("grpo_minimal", FILE)
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    monkeypatch.setitem(sys.modules, "grpo_minimal", module)
    found.loader.exec_module(module)
    yield module


def test_it_runs(minimal: ModuleType, tiny_model_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rewards = minimal.main(model=f"path:{tiny_model_dir}", steps=2, examples=2, rollouts=3, questions=3)
    assert len(rewards) == 2 and all(0 <= reward <= 1 for reward in rewards)
    before, *steps, after = capsys.readouterr().out.splitlines()
    assert before.startswith("before: exact match ") and after.startswith("after: exact match ")
    assert [line.split(":")[0] for line in steps] == ["step 1", "step 2"]


def test_an_update_favours_the_calls_of_better_runs(minimal: ModuleType, tiny_model_dir: Path) -> None:
    engine = LocalEngine(*load(find([f"path:{tiny_model_dir}"], Path), "float32"))
    engine.adapters.create(minimal.ADAPTER, LoraOptions(4, 8, 0.0, "all-linear"), seed=0)
    search = Bm25([{"title": name} for name in "abcdefghijklmnopqrstuvwxyz"], ["title"], k=3)
    rows = [{"id": str(i), "question": f"question {i}", "title": "z"} for i in range(2)]
    done = minimal.run_all(engine, search, rows, (0,), temperature=1.0, rollouts=4)
    groups = minimal.form_groups([replace(run, reward=float(i % 2)) for i, run in enumerate(done)])
    calls = minimal.training_calls(groups)
    optimizer = torch.optim.AdamW(engine.adapters.parameters(minimal.ADAPTER).values(), lr=1e-3)

    def objective() -> float:
        with torch.no_grad(), engine.adapters.active(minimal.ADAPTER):
            logprobs_F = free_logprobs(engine.lm, [call.sampled for call in calls])[0]
        pieces = zip(calls, logprobs_F.split([len(call.old_F) for call in calls]), strict=True)
        return sum(call.weight * call.advantage * own_F.mean().item() for call, own_F in pieces)

    before = objective()
    minimal.update(engine, optimizer, calls)
    assert objective() > before + 1e-4


def completion(rng: random.Random) -> Completion:
    """Random tokens, some of them forced, some (one in ten completions) all of them."""
    count = rng.randint(1, 6)
    share = rng.choice([0.0] + [0.6] * 9)
    free = [rng.random() < share for _ in range(count)]
    allowed = [rng.choice([None, np.array([1, 2], np.int32)]) if f else np.array([1], np.int32) for f in free]
    logprobs = [-rng.expovariate(1.0) if f else 0.0 for f in free]
    return Completion("", "stop", (1, 2), (1,) * count, tuple(logprobs), tuple(allowed), 0.7)


def runs(minimal: ModuleType, seed: int) -> tuple[list[object], list[trajectory.Trajectory]]:
    """The same random runs as the example's trajectories and as the package's; they make one to three calls a module."""
    rng, ours, theirs = random.Random(seed), [], []
    for example in "abc":
        for rollout in range(5):
            places = [(m, k) for m in ("write_query", "pick_article") for k in range(rng.randint(1, 3))]
            done = [completion(rng) for _ in places]
            reward = rng.choice([0.0, 0.25, 1.0])
            calls = [minimal.Call(*place, one) for place, one in zip(places, done, strict=True)]
            ours.append(minimal.Trajectory(example, calls, reward))
            full = [trajectory.Call(*place, {}, (), one, {}) for place, one in zip(places, done, strict=True)]
            theirs.append(trajectory.Trajectory(example, rollout, tuple(full), {}, reward, "done"))
    return ours, theirs


@pytest.mark.parametrize("seed", range(5))
def test_calls_have_the_advantages_and_weights_of_the_package(minimal: ModuleType, seed: int) -> None:
    ours, theirs = runs(minimal, seed)
    modules = {name: update.ModuleTerms("shared", 24) for name in ("write_query", "pick_article")}
    groups = group.form_groups(theirs, list(modules), group.Rewards())
    assert any(not advantage.has_spread(g.rewards_C) for g in groups)
    expected = update.training_calls(groups, MmGrpo(), modules)
    found = [call for call in minimal.training_calls(minimal.form_groups(ours)) if call.advantage]
    assert len(found) == len(expected) > 20
    for call, wanted in zip(found, expected, strict=True):
        assert call.sampled == wanted.sampled
        assert call.advantage == pytest.approx(wanted.advantage)
        assert call.weight / len(call.old_F) == pytest.approx(wanted.weight)
        torch.testing.assert_close(call.old_F, torch.tensor(wanted.sampler_F))


@pytest.mark.parametrize("seed", range(5))
def test_advantages_and_loss_equal_the_packages(minimal: ModuleType, seed: int) -> None:
    """Log-probabilities far from the old ones, so that many tokens are clipped; the gradient is the same too."""
    torch.manual_seed(seed)
    rewards = [torch.rand(4).tolist() for _ in range(3)]
    advantages = advantage.advantages(rewards)
    assert [minimal.advantages(rewards_C) for rewards_C in rewards] == [pytest.approx(a) for a in advantages]
    advantages_C = torch.tensor(advantages).flatten()
    counts = torch.randint(1, 6, (12,))
    total = int(counts.sum())
    old_F, logprobs_F = -torch.rand(total), (-torch.rand(total)).requires_grad_()

    pieces = zip(logprobs_F.split(counts.tolist()), old_F.split(counts.tolist()), advantages_C.tolist(), strict=True)
    ours = torch.stack([minimal.policy_loss(*piece) / 4 / 3 for piece in pieces]).sum()
    (our_gradient,) = torch.autograd.grad(ours, logprobs_F)

    shares = [loss.Share(int(count), 24, members=4) for count in counts]
    weights_C = torch.tensor(loss.token_weights(shares, 3, total, "grpo"))
    call_F = torch.arange(12).repeat_interleave(counts)
    batch = loss.Batch(old_F, advantages_C[call_F], weights_C[call_F], torch.ones(total), call_F)
    theirs = loss.policy_loss("grpo", logprobs_F, batch, (0.2, 0.2))
    (their_gradient,) = torch.autograd.grad(theirs.loss, logprobs_F)
    assert theirs.clipped > 0
    torch.testing.assert_close(ours, theirs.loss)
    torch.testing.assert_close(our_gradient, their_gradient)
