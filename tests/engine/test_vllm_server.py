"""vLLM itself, its CPU build, draws what SmolLM2 says, and helpdesk is trained on that. `make slow` installs it; minutes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from mmc.data import load_split
from mmc.engine.adapters import LoraOptions
from mmc.engine.base import Completion, Message, Request, Sampling
from mmc.engine.local import open_local
from mmc.engine.vllm import VllmEngine
from mmc.mmgrpo.train import TrainingJob, train
from mmc.program.graph import Program
from mmc.spec import load
from mmc.spec.lm import LocalModel
from mmc.spec.model import Lora, MmGrpo

from ..conftest import REAL_SOURCE

REPO = Path(__file__).parents[2]
PYTHON = REPO / ".peers/vllm/bin/python"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def theirs() -> Iterator[VllmEngine]:
    if not PYTHON.exists():
        pytest.fail("vLLM's environment is missing: run `make .peers/vllm/.ready`")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
        # Compiling takes minutes; the CPU build computes every adapter as if it had the greatest rank.
        options = ["--dtype", "float32", "--max-model-len", "2048", "--enforce-eager", "--max-lora-rank", "8"]
        sampler = {"type": "vllm", "start": str(PYTHON), "options": options}
        engine: Any = open_local(LocalModel(type="local", source=REAL_SOURCE, sampler=sampler), Path, {})
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def ours() -> Any:
    return open_local(LocalModel(type="local", source=REAL_SOURCE), Path, {})


def draw(engine: Any, requests: list[Request]) -> list[Completion]:
    async def one(request: Request) -> Completion:
        with engine.client():
            return await engine.complete(request)

    async def all_() -> list[Completion]:
        return await asyncio.gather(*map(one, requests))

    return asyncio.run(all_())


def asked(adapter: str | None) -> list[Request]:
    lines = (REPO / "examples/helpdesk/test.jsonl").read_text().splitlines()[:50]
    texts = [json.loads(line)["question"] for line in lines]
    return [
        Request(("s", 0, i), (Message("user", f"Answer briefly. {text}"),), Sampling(0.0, 16), adapter=adapter)
        for i, text in enumerate(texts)
    ]


def test_greedy_answers_are_the_same_with_and_without_an_adapter(theirs: VllmEngine, ours: Any) -> None:
    for engine in (theirs, ours):
        engine.adapters.create("stage.a", LoraOptions(8, 16, 0.0, "all-linear"), seed=1)
    for size in (0.0, 0.02, -0.02):
        for engine in (theirs, ours):
            with torch.no_grad():
                for i, tensor in enumerate(engine.adapters.parameters("stage.a").values()):
                    if tensor.shape[1] == 8:  # B, which is zero in a fresh adapter
                        tensor.copy_(torch.randn(tensor.shape, generator=torch.Generator().manual_seed(i)) * size)
        pairs = list(zip(draw(theirs, asked("stage.a")), draw(ours, asked("stage.a")), strict=True))
        same = [(one, other) for one, other in pairs if one.ids_T == other.ids_T]
        assert len(same) >= 48, "two ways to compute float32 may part where two tokens are as good as equal"
        for one, other in same:
            assert one.logprobs_T == pytest.approx(other.logprobs_T, abs=2e-3)
            assert (one.text, one.finish) == (other.text, other.finish)


def test_helpdesk_is_trained_on_what_vllm_draws(theirs: VllmEngine, tmp_path: Path) -> None:
    program = Program.build(load(REPO / "specs/helpdesk.yaml"))
    engines = {"policy": theirs}
    config = MmGrpo(steps=3, examples=4, rollouts=4, learning_rate=3e-4, lora=Lora(rank=8, alpha=16))
    train(TrainingJob(program, engines, load_split(program.loaded, "train"), [], config, 0, tmp_path))
    steps = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert len(steps) == 3 and all(0 < step["reward"] < 1 and step["grad_norm"] > 0 for step in steps)
    assert all(step["drift"] < 0.05 for step in steps), "what vLLM says of its draws is what training finds"


def test_helpdesk_is_trained_on_what_vllm_draws_ahead(theirs: VllmEngine, ours: Any, tmp_path: Path) -> None:
    """The queries are drawn by vLLM while this process trains; articles are picked here, by the plain model."""
    text = (REPO / "specs/helpdesk.yaml").read_text().replace("../", f"{REPO}/")
    text = text.replace("  pick_article:\n    model: policy\n", "  pick_article:\n    model: plain\n    train: false\n")
    started = f"{{type: vllm, start: {PYTHON}}}"
    text = text.replace(
        "\ntools:", f"\n    sampler: {started}\n  plain:\n    type: local\n    source: {REAL_SOURCE}\n\ntools:", 1
    )
    (tmp_path / "spec.yaml").write_text(text)
    program = Program.build(load(tmp_path / "spec.yaml"))
    config = MmGrpo(steps=4, examples=8, rollouts=4, learning_rate=3e-3, lora=Lora(rank=8, alpha=16), staleness=1)
    folder = tmp_path / "weights"
    folder.mkdir()
    engines = {"policy": theirs, "plain": ours}
    train(TrainingJob(program, engines, load_split(program.loaded, "train"), [], config, 0, folder))
    steps = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [step["staleness"] for step in steps] == [0, 1, 1, 1]
    assert sum(step["grad_norm"] > 0 for step in steps) >= 2
    assert steps[0]["drift"] < 1e-3 < 0.1 < max(step["drift"] for step in steps), "their age is seen"
