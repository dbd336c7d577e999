"""Layers with the same input as one product: the same outputs, whatever the layers are asked with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from mmc.engine import onednn
from mmc.engine.adapters import Adapters, LoraOptions
from mmc.engine.joint import Joint


@pytest.fixture
def asked() -> tuple[Joint, list[Callable[[Tensor], Tensor]], list[Tensor]]:
    """A joint of three layers, the layers one by one, and what the joint's product was asked with."""
    torch.manual_seed(0)
    matrices = [torch.randn(width, 4) for width in (3, 2, 5)]
    inputs: list[Tensor] = []

    def product(x: Tensor) -> Tensor:
        inputs.append(x)
        return x @ torch.cat(matrices).T

    return Joint(product, [3, 2, 5]), [lambda x, m=matrix: x @ m.T for matrix in matrices], inputs


def test_layers_asked_with_one_tensor_share_a_product(asked) -> None:  # type: ignore[no-untyped-def]
    joint, layers, inputs = asked
    for order in ((0, 1, 2), (2, 0, 1)):
        x = torch.randn(2, 6, 4)
        for number in order:
            torch.testing.assert_close(joint.part(number, x), layers[number](x))
    assert len(inputs) == 2


def test_other_tensors_and_tensors_changed_in_place_are_computed_anew(asked) -> None:  # type: ignore[no-untyped-def]
    joint, layers, _ = asked
    x, other = torch.randn(1, 3, 4), torch.randn(1, 3, 4)
    for number, given in ((0, x), (1, other), (2, x), (2, x)):
        torch.testing.assert_close(joint.part(number, given), layers[number](given))
    for _ in range(2):  # all were asked: nothing is remembered
        for number in range(3):
            torch.testing.assert_close(joint.part(number, x), layers[number](x))
        x.mul_(2.0)


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "v_proj", "down_proj"]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layer_of_a_model_takes_four_products(
    tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch, targets: str | list[str], dtype: torch.dtype
) -> None:
    """Instead of seven; those that the adapter has of one family are joined."""
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=dtype).eval()
    if not onednn.packable(model.lm_head.weight):
        pytest.skip("this CPU has no fast bf16 products; adapters run beside the weights then")
    rows: list[int] = []
    one = onednn.linear
    monkeypatch.setattr(onednn, "linear", lambda matrix, bias, x: (rows.append(x.shape[1]), one(matrix, bias, x))[1])
    adapters = Adapters(model, "")
    adapters.create("a", LoraOptions(4, 8.0, 0.0, targets), seed=1)
    torch.manual_seed(1)
    for key, tensor in adapters.parameters("a").items():
        if "lora_B" in key:
            torch.nn.init.normal_(tensor, std=0.2)
    with torch.no_grad(), adapters.active("a"):
        found = model(input_ids=torch.arange(5, 25)[None], use_cache=False).logits
    with torch.no_grad(), adapters.active("a", train=True):
        trained = model(input_ids=torch.arange(5, 25)[None], use_cache=False).logits
    rounding = 1e-5 if dtype == torch.float32 else 2**-7
    assert (found - trained).abs().max() <= rounding * trained.abs().max()
    assert len(rows) == len(model.model.layers) * (4 if targets == "all-linear" else 2) + 1
