"""Prepared copies: the same model as with the adapter beside the weights, and never a stale one."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM

from mmc.engine import onednn, prepared
from mmc.engine.adapters import Adapters, LoraOptions


@pytest.fixture
def model(tiny_model_dir: Path) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(tiny_model_dir).eval()


IDS = torch.arange(5, 25)[None]


def add(adapters: Adapters, name: str, seed: int, **options: bool) -> None:
    adapters.create(name, LoraOptions(4, 8.0, 0.0, "all-linear", **options), seed=seed)
    torch.manual_seed(seed)
    for key, tensor in adapters.parameters(name).items():
        if "lora_B" in key:
            torch.nn.init.normal_(tensor, std=0.2)


def logits(model: torch.nn.Module, adapters: Adapters, name: str | None, train: bool = False) -> torch.Tensor:
    with torch.no_grad(), adapters.active(name, train=train):
        found: torch.Tensor = model(input_ids=IDS, use_cache=False).logits
    return found


def from_copy(adapters: Adapters) -> bool:
    return bool(adapters._prepared._inside)


@pytest.mark.parametrize("rslora", [False, True])
def test_a_merged_adapter_gives_what_training_computes(model: torch.nn.Module, rslora: bool) -> None:
    adapters = Adapters(model, "")
    add(adapters, "a", 1, rslora=rslora)
    with adapters.active("a"):
        assert from_copy(adapters)
    torch.testing.assert_close(logits(model, adapters, "a"), logits(model, adapters, "a", train=True))
    assert not from_copy(adapters)


@pytest.mark.parametrize("faster", [False, True])
def test_the_models_own_weights_come_back_unchanged(
    model: torch.nn.Module, monkeypatch: pytest.MonkeyPatch, faster: bool
) -> None:
    monkeypatch.setattr(onednn, "faster", lambda weight: faster)
    before = {name: p.clone() for name, p in model.named_parameters()}
    own = model(input_ids=IDS, use_cache=False).logits.detach()
    adapters = Adapters(model, "")
    plain = logits(model, adapters, None)
    torch.testing.assert_close(plain, own)
    assert from_copy(adapters) == faster
    add(adapters, "a", 1)
    changed = logits(model, adapters, "a")
    assert not torch.allclose(changed, plain)
    assert torch.equal(logits(model, adapters, None), plain if faster else own)
    now = {name.replace(".base_layer", ""): p for name, p in model.named_parameters() if "lora_" not in name}
    assert all(torch.equal(now[name], value) for name, value in before.items())


def test_a_step_of_the_optimizer_is_merged_anew(model: torch.nn.Module) -> None:
    adapters = Adapters(model, "")
    add(adapters, "a", 1)
    first = logits(model, adapters, "a")
    optimizer = torch.optim.AdamW(list(adapters.parameters("a").values()), lr=0.05)
    with adapters.active("a", train=True):
        model(input_ids=IDS, use_cache=False).logits.square().mean().backward()
    optimizer.step()
    second = logits(model, adapters, "a")
    assert not torch.allclose(first, second)
    torch.testing.assert_close(second, logits(model, adapters, "a", train=True))


def test_a_restored_adapter_is_merged_anew(model: torch.nn.Module, tmp_path: Path) -> None:
    adapters = Adapters(model, "")
    add(adapters, "a", 1)
    first = logits(model, adapters, "a")
    adapters.save("a", tmp_path / "a")
    with torch.no_grad():
        for tensor in adapters.parameters("a").values():
            tensor.mul_(2.0)
    assert not torch.allclose(logits(model, adapters, "a"), first)
    adapters.restore("a", tmp_path / "a")
    torch.testing.assert_close(logits(model, adapters, "a"), first)


def test_more_adapters_than_copies_run_beside_the_weights(model: torch.nn.Module) -> None:
    adapters = Adapters(model, "")
    names = ["a", "b", "c"]
    for seed, name in enumerate(names):
        add(adapters, name, seed)
    expected = {name: logits(model, adapters, name, train=True) for name in names}
    for _ in range(2):
        for name in names:
            torch.testing.assert_close(logits(model, adapters, name), expected[name])
    assert len(adapters._prepared._copies) == prepared.COPIES
    for _ in range(prepared.RECENT):
        logits(model, adapters, "c")
    with adapters.active("c"):
        assert from_copy(adapters), "a copy nobody asks for gives way"
    torch.testing.assert_close(logits(model, adapters, "c"), expected["c"])
    torch.testing.assert_close(logits(model, adapters, "a"), expected["a"])


def test_a_model_too_large_to_copy_runs_beside_the_weights(
    model: torch.nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    linears = [m.weight for m in model.modules() if isinstance(m, torch.nn.Linear)]
    size = sum(weight.numel() * weight.element_size() for weight in linears)
    for total, fits in ((size * 8, True), (size * 8 - 1, False)):
        monkeypatch.setattr("psutil.virtual_memory", lambda total=total: SimpleNamespace(total=total))
        adapters = (
            Adapters(model, "") if fits else Adapters(AutoModelForCausalLM.from_pretrained(model.name_or_path), "")
        )
        add(adapters, "a", 1)
        with adapters.active("a"):
            assert from_copy(adapters) == fits


def test_dora_is_not_merged(model: torch.nn.Module) -> None:
    adapters = Adapters(model, "")
    add(adapters, "a", 1, dora=True)
    with adapters.active("a"):
        assert not from_copy(adapters)
    torch.testing.assert_close(logits(model, adapters, "a"), logits(model, adapters, "a", train=True))


def test_an_adapter_of_the_same_name_takes_the_others_place(model: torch.nn.Module) -> None:
    adapters = Adapters(model, "")
    add(adapters, "a", 1)
    add(adapters, "b", 2)
    first, other = logits(model, adapters, "a"), logits(model, adapters, "b")
    add(adapters, "a", 3)
    again = logits(model, adapters, "a")
    assert not torch.allclose(again, first)
    torch.testing.assert_close(again, logits(model, adapters, "a", train=True))
    torch.testing.assert_close(logits(model, adapters, "b", train=True), other)


def test_in_half_precision_a_small_change_is_not_lost_in_the_weights_grid(tiny_model_dir: Path) -> None:
    """The matrix that a layer applies, found from many inputs, is its own and the change; merging would lose part of it."""
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.bfloat16).eval()
    if not onednn.packable(model.lm_head.weight):
        pytest.skip("this CPU has no fast bf16 products; adapters run beside the weights then")
    adapters = Adapters(model, "")
    add(adapters, "a", 1)
    with torch.no_grad():
        for key, tensor in adapters.parameters("a").items():
            if "lora_B" in key:
                tensor.mul_(0.01)
    with torch.no_grad(), adapters.active("a"):
        assert from_copy(adapters)
        for layer in (m for m in adapters._peft.modules() if hasattr(m, "get_delta_weight")):
            weight = layer.get_base_layer().weight.double()
            change = layer.get_delta_weight(adapters._names["a"]).double()
            x = torch.randn(8192, weight.shape[1], generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
            applied = torch.linalg.lstsq(x.double(), layer(x).double()).solution.T
            assert (applied - weight - change).norm() < 0.1 * change.norm()
            assert ((weight + change).to(torch.bfloat16).double() - weight - change).norm() > 0.2 * change.norm()


def test_half_precision_without_packing_runs_beside_the_weights(tiny_model_dir: Path) -> None:
    adapters = Adapters(AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float16).eval(), "")
    add(adapters, "a", 1)
    with adapters.active("a"):
        assert not from_copy(adapters)
    model = adapters._model
    assert torch.equal(logits(model, adapters, "a"), logits(model, adapters, "a", train=True))


@pytest.mark.parametrize("packable", [True, False])
def test_a_layer_with_bias_gives_what_training_computes(
    tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch, packable: bool
) -> None:
    if not packable:
        monkeypatch.setattr(onednn, "packable", lambda weight: False)
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir).eval()
    torch.manual_seed(0)
    for layer in model.model.layers:
        layer.mlp.up_proj.bias = torch.nn.Parameter(torch.randn(layer.mlp.up_proj.out_features))
    adapters = Adapters(model, "")
    add(adapters, "a", 1)
    with adapters.active("a"):
        assert from_copy(adapters)
    torch.testing.assert_close(logits(model, adapters, "a"), logits(model, adapters, "a", train=True))


@pytest.mark.parametrize("last", ["a", None])
def test_an_adapter_that_comes_when_the_layers_are_off_is_on(model: torch.nn.Module, last: str | None) -> None:
    """Layers are off while an adapter is merged, and while the plain model runs; there is no room for a further copy."""
    adapters = Adapters(model, "")
    for seed, name in enumerate(("b", "a")):
        add(adapters, name, seed)
        logits(model, adapters, name)
    plain = logits(model, adapters, None)
    logits(model, adapters, last)
    add(adapters, "new", 5)
    found = logits(model, adapters, "new")
    assert not torch.allclose(found, plain)
    torch.testing.assert_close(found, logits(model, adapters, "new", train=True))


def test_in_half_precision_sampling_rounds_as_training_and_all_adapters_share_one_copy(model: torch.nn.Module) -> None:
    model.to(torch.bfloat16)
    if not onednn.packable(model.lm_head.weight):
        pytest.skip("this CPU has no fast bf16 products; adapters run beside the weights then")
    adapters = Adapters(model, "")
    for seed, name in enumerate("abcd"):
        add(adapters, name, seed)
        found = logits(model, adapters, name)
        assert from_copy(adapters)
        trained = logits(model, adapters, name, train=True)
        assert (found - trained).abs().max() <= 2**-7 * trained.abs().max()
        assert (found == trained).float().mean() > 0.5
    logits(model, adapters, None)
    assert from_copy(adapters) and len(adapters._prepared._packed) == 2 * 4 + 1


@pytest.mark.parametrize(("dtype", "faster"), [(torch.float32, False), (torch.float32, True), (torch.bfloat16, False)])
def test_the_model_without_an_adapter_has_a_copy_where_it_gains(
    model: torch.nn.Module, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, faster: bool
) -> None:
    monkeypatch.setattr(onednn, "faster", lambda weight: faster)
    model.to(dtype)
    with torch.no_grad():
        plain = model(input_ids=IDS, use_cache=False).logits
    adapters = Adapters(model, "")
    torch.testing.assert_close(logits(model, adapters, None), plain)
    assert from_copy(adapters) == (faster or (dtype == torch.bfloat16 and onednn.packable(model.lm_head.weight)))
    for seed, name in enumerate(("b", "a")):
        add(adapters, name, seed)
        assert not torch.allclose(logits(model, adapters, name), plain, rtol=0.02, atol=0.02)
        # Both adapters have a copy, whether the model without one has its own or not.
        assert from_copy(adapters) == onednn.packable(model.lm_head.weight)
        torch.testing.assert_close(logits(model, adapters, None), plain)


def test_no_copy_is_left_when_whole_weights_come(model: torch.nn.Module) -> None:
    model.to(torch.bfloat16)
    adapters = Adapters(model, "")
    plain = logits(model, adapters, None)
    adapters.create_full("whole")
    with adapters.active("whole"), torch.no_grad():
        for tensor in adapters.parameters("whole").values():
            tensor.mul_(1.5)
    assert not torch.allclose(logits(model, adapters, "whole"), plain, rtol=0.1, atol=0.1)
    assert not from_copy(adapters) and not adapters._prepared._packed
    torch.testing.assert_close(logits(model, adapters, None), plain)
