"""The lean LoRA layer against PEFT's own, value and gradient."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from mmc.engine.lora import LeanLinear, lean


def model(with_bias: bool = False, dtype: torch.dtype = torch.float32, **options: Any) -> PeftModel:
    torch.manual_seed(0)
    layers = torch.nn.Sequential(
        torch.nn.Linear(24, 40, with_bias), torch.nn.SiLU(), torch.nn.Linear(40, 16, with_bias)
    )
    peft = get_peft_model(layers.to(dtype), LoraConfig(r=4, lora_alpha=12, target_modules=["0", "2"], **options))
    with torch.no_grad():
        for name, tensor in peft.named_parameters():
            if "lora_" in name:
                tensor.normal_(std=0.3)
    return peft


def results(peft: PeftModel, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """The output, and the gradients of the input and of every trained tensor."""
    peft.zero_grad()
    x = torch.randn(3, 7, 24, generator=torch.Generator().manual_seed(1)).to(dtype).requires_grad_()
    torch.manual_seed(3)
    out = peft(x)
    (out.float() * torch.randn(out.shape, generator=torch.Generator().manual_seed(2))).sum().backward()
    assert x.grad is not None
    found = {name: p.grad for name, p in peft.named_parameters() if p.grad is not None}
    return {"out": out.detach(), "x": x.grad, **found}


def ways(peft: PeftModel) -> list[str | None]:
    """The adapter that each layer computes lean; None where PEFT's own code runs."""
    return [m._plain_adapter() for m in peft.modules() if isinstance(m, LeanLinear)]


def test_a_bias_that_is_trained_too_stays_pefts() -> None:
    peft = model(True, bias="all")
    theirs = results(peft)
    lean(peft)
    ours = results(peft)
    assert any("bias" in name for name in theirs) and ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def assert_same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor], tolerance: float) -> None:
    assert ours.keys() == theirs.keys() and len(ours) >= 6
    for name, expected in theirs.items():
        assert ours[name].dtype == expected.dtype and ours[name].shape == expected.shape
        assert (ours[name] - expected).float().norm() < tolerance * expected.float().norm(), name


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 0.02)])
@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.usefixtures("processor")
def test_value_and_gradients_are_pefts(bias: bool, dtype: torch.dtype, tolerance: float, rslora: bool) -> None:
    peft = model(bias, dtype, use_rslora=rslora)
    theirs = results(peft, dtype)
    lean(peft)
    assert ways(peft) == ["default", "default"]
    assert_same(results(peft, dtype), theirs, tolerance)


@pytest.mark.parametrize("options", [{"lora_dropout": 0.5}, {"use_dora": True}, {"lora_bias": True}])
def test_what_is_not_plain_stays_pefts(options: dict[str, Any]) -> None:
    peft = model("lora_bias" in options, **options).train()
    theirs = results(peft)
    lean(peft)
    assert ways(peft) == [None, None]
    ours = results(peft)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_several_adapters_merged_ones_and_none_stay_pefts() -> None:
    peft = model()
    peft.add_adapter("other", LoraConfig(r=2, target_modules=["0"], init_lora_weights=False))
    x = torch.randn(5, 24)
    plain = copy.deepcopy(peft)
    lean(peft)
    for one in (peft, plain):
        one.base_model.set_adapter(["default", "other"])
    torch.testing.assert_close(peft(x), plain(x))
    for one in (peft, plain):
        one.set_adapter("other")
    torch.testing.assert_close(peft(x), plain(x))
    with peft.disable_adapter(), plain.disable_adapter():
        torch.testing.assert_close(peft(x), plain(x))
    for one in (peft, plain):
        one.set_adapter("default")
        one.merge_adapter()
    torch.testing.assert_close(peft(x), plain(x))


def test_a_copy_of_the_model_has_its_own_tensors() -> None:
    peft = model()
    lean(peft)
    other = copy.deepcopy(peft)
    x = torch.randn(5, 24)
    before = other(x).detach()
    with torch.no_grad():
        for name, tensor in peft.named_parameters():
            if "lora_" in name:
                tensor.zero_()
    torch.testing.assert_close(other(x), before)
    assert not torch.allclose(peft(x), before)
