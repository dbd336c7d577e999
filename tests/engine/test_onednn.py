"""Products by oneDNN against PyTorch's own, and where they are taken."""

from __future__ import annotations

import pytest
import torch

from mmc.engine import onednn

pytestmark = pytest.mark.skipif(not onednn.packable(torch.empty(1)), reason="this build of PyTorch has no oneDNN")


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(24,), (1, 24), (3, 7, 24), (300, 24), (0, 24)])
def test_a_product_is_pytorchs(
    processor: str, transposed: bool, packed: bool, bias: bool, shape: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    weight = torch.randn(24, 40).T if transposed else torch.randn(40, 24)
    b, x = torch.randn(40) if bias else None, torch.randn(shape)
    matrix = onednn.pack(weight) if packed else weight
    expected = (x.double() @ weight.double().T + (0 if b is None else b.double())).float()
    torch.testing.assert_close(onednn.linear(matrix, b, x), expected)


@pytest.mark.parametrize(
    "x",
    [torch.ones(()).expand(30, 24), torch.randn(24, 30).T, torch.randn(30, 25)[:, 1:], torch.randn(30, 48)[:, ::2]],
    ids=["expanded", "transposed", "from the second column", "every second column"],
)
def test_what_is_multiplied_may_lie_in_memory_as_it_likes(processor: str, x: torch.Tensor) -> None:
    weight = torch.randn(40, 25)[:, 1:]
    expected = (x.double() @ weight.double().T).float()
    for matrix in (weight, onednn.pack(weight)):
        torch.testing.assert_close(onednn.linear(matrix, None, x), expected)


def test_which_is_faster_depends_on_the_processor_and_the_numbers(processor: str) -> None:
    assert onednn.faster(torch.empty(4, 4)) == (processor == "amd epyc")
    assert not onednn.faster(torch.empty(4, 4, dtype=torch.bfloat16))
    assert not onednn.faster(torch.empty(4, 4, device="meta"))


@pytest.mark.skipif(not hasattr(torch.cpu, "get_capabilities"), reason="this PyTorch names no processor")
def test_the_processor_has_a_name() -> None:
    assert onednn._processor() and onednn._processor() == str(torch.cpu.get_capabilities()["cpu_name"]).lower()
