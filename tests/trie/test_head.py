"""Log-probabilities and gradients of the head against plain autograd over whole rows of logits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoModelForCausalLM

from mmc.trie import head
from mmc.trie.head import FreeTokens, chosen_logprobs
from mmc.trie.model import TrieModel


@pytest.fixture
def model(tiny_model_dir: Path) -> TrieModel:
    return TrieModel(AutoModelForCausalLM.from_pretrained(tiny_model_dir).eval())


def tokens(kind: str, count: int = 40) -> FreeTokens:
    """Tokens of 15 rows, some rows with several tokens; ``mixed`` has constraints and two temperatures, ``wide`` large sets."""
    rng = np.random.default_rng(0)
    rows, targets = rng.integers(0, 15, count), rng.integers(0, 260, count)
    if kind == "rows":
        rows = np.arange(15)[rng.permutation(15)]
        targets = targets[:15]
    temperatures = np.full(len(rows), 0.7, np.float32)
    allowed: list[NDArray[np.int32] | None] = [None] * len(rows)
    if kind in ("mixed", "wide"):
        temperatures[rng.random(len(rows)) < 0.5] = 1.3
        for i in np.flatnonzero(rng.random(len(rows)) < 0.4):
            others = rng.choice(260, rng.integers(1, 6 if kind == "mixed" else 90), replace=False)
            allowed[i] = np.unique([targets[i], *others]).astype(np.int32)
    return FreeTokens(rows, targets, temperatures, allowed)


def plain(model: TrieModel, hidden_NH: Tensor, wanted: FreeTokens) -> tuple[Tensor, Tensor]:
    logprobs, entropies = [], []
    places = zip(wanted.rows_F, wanted.targets_F, wanted.temperatures_F, wanted.allowed_F, strict=True)
    for row, target, temperature, allowed in places:
        logits_V = model.head(hidden_NH[int(row)]) * model.scale
        if model.softcap is not None:
            logits_V = torch.tanh(logits_V / model.softcap) * model.softcap
        logits_V = logits_V / float(temperature)
        if allowed is not None:
            closed = torch.ones(len(logits_V), dtype=torch.bool)
            closed[allowed.astype(np.int64)] = False
            logits_V = logits_V.masked_fill(closed, -torch.inf)
        logprobs_V = torch.log_softmax(logits_V, dim=-1)
        open_V = logprobs_V[logprobs_V > -torch.inf]
        logprobs.append(logprobs_V[int(target)])
        entropies.append(-(open_V.exp() * open_V).sum())
    return torch.stack(logprobs), torch.stack(entropies)


@pytest.mark.parametrize("kind", ["rows", "repeated", "mixed", "wide"])
@pytest.mark.parametrize(("softcap", "scale"), [(None, 1.0), (None, 0.5), (2.0, 1.0), (3.0, 0.25)])
@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("piece_rows", [7, 512])
def test_values_and_gradients_equal_plain_autograd(
    model: TrieModel,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    softcap: float | None,
    scale: float,
    trained: bool,
    piece_rows: int,
) -> None:
    monkeypatch.setattr(head, "HEAD_ROWS", piece_rows)
    model.softcap, model.scale = softcap, scale
    model.head.weight.requires_grad_(trained)
    hidden_NH = (torch.randn(15, 32, generator=torch.Generator().manual_seed(1)) * 3).requires_grad_()
    wanted = tokens(kind)
    ours_F, entropies_F = chosen_logprobs(model, hidden_NH, wanted)
    theirs_F, expected_F = plain(model, hidden_NH, wanted)
    torch.testing.assert_close(ours_F, theirs_F, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(entropies_F, expected_F, rtol=1e-4, atol=1e-4)
    assert not entropies_F.requires_grad
    direction_F = torch.randn(len(ours_F), generator=torch.Generator().manual_seed(2))
    wrt = [hidden_NH, model.head.weight] if trained else [hidden_NH]
    found = torch.autograd.grad(ours_F @ direction_F, wrt)
    expected = torch.autograd.grad(theirs_F @ direction_F, wrt)
    for one, other in zip(found, expected, strict=True):
        assert (one - other).norm() < 1e-5 * other.norm()


def test_a_sure_token_keeps_its_small_gradient_in_half_precision(tiny_model_dir: Path) -> None:
    """What is left of two almost equal rows of the head is computed before rounding, not after."""
    exact = TrieModel(AutoModelForCausalLM.from_pretrained(tiny_model_dir).eval())
    half = TrieModel(AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.bfloat16).eval())
    with torch.no_grad():
        exact.head.weight.copy_(half.head.weight)
        target = exact.head.weight[11]
    hidden_NH = (target / target.norm().square() * 13).to(torch.bfloat16)[None]
    wanted = FreeTokens(np.zeros(1, np.int64), np.array([11]), np.ones(1, np.float32), [None])
    gradients = []
    for model in (exact, half):
        model.head.weight.requires_grad_(False)
        row = hidden_NH.detach().clone().to(model.head.weight.dtype).requires_grad_()
        logprob_F, _ = chosen_logprobs(model, row, wanted)
        assert -0.05 < logprob_F.item() < -1e-4
        logprob_F.sum().backward()
        gradients.append(row.grad.float())
    assert (gradients[0] - gradients[1]).norm() < 0.05 * gradients[0].norm()


def test_a_frozen_head_gets_no_gradient(model: TrieModel) -> None:
    model.head.weight.requires_grad_(False)
    hidden_NH = torch.randn(15, 32, requires_grad=True)
    chosen_logprobs(model, hidden_NH, tokens("mixed"))[0].sum().backward()
    assert hidden_NH.grad is not None and model.head.weight.grad is None
