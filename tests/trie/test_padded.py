"""Padded batches: a recurrent model against one sequence at a time, and an attention model against the trie."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from mmc.data import Example
from mmc.engine.adapters import Adapters, LoraOptions
from mmc.engine.local import LocalEngine
from mmc.errors import UsageError
from mmc.mmgrpo.train import TrainingJob, train
from mmc.program.graph import Program
from mmc.spec import load
from mmc.spec.model import MmGrpo
from mmc.trie.decode import Decoder, Stream
from mmc.trie.logprobs import Sampled, free_logprobs
from mmc.trie.model import CausalModel, TrieModel
from mmc.trie.padded import PaddedDecoder, PaddedModel, causal_model, padded_groups
from mmc.trie.parts import in_parts

from .test_decode import STOPS, _Even, draw, prompts
from .test_gradient import plain_logprobs, samples


def mamba(folder: Path) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return model


def decode(decoder: Decoder | PaddedDecoder, streams: Sequence[Stream]) -> list[Stream]:
    decoder.add(streams)
    finished = []
    while decoder:
        finished += decoder.step()
    assert sorted(map(id, finished)) == sorted(map(id, streams)), "everyone is told once"
    return list(streams)


def streams(count: int) -> list[Stream]:
    """Prompts of different lengths; every other completion under a constraint that forces its end."""
    return [
        Stream(p, 5 + i % 5, 1.0 if i % 3 else 0.0, draw(i), _Even() if i % 2 else None)
        for i, p in enumerate(prompts(count))
    ]


@pytest.mark.parametrize("budget", [1, 100, 100_000])
def test_an_attention_model_draws_what_it_draws_on_the_trie(tiny_model_dir: Path, budget: int) -> None:
    def model() -> PreTrainedModel:
        found: PreTrainedModel = AutoModelForCausalLM.from_pretrained(tiny_model_dir).eval()
        return found

    ours = decode(Decoder(TrieModel(model()), STOPS, 100_000), streams(12))
    padded = PaddedModel(model())
    theirs = decode(PaddedDecoder(padded, STOPS, budget), streams(12))
    assert [s.ids for s in ours] == [s.ids for s in theirs] and [s.finish for s in ours] == [s.finish for s in theirs]
    assert len({len(s.ids) for s in ours}) > 3
    batch = [Sampled(s.prompt_ids, s.ids, s.allowed) for s in theirs]
    drawn = torch.tensor([p for s, b in zip(theirs, batch, strict=True) for p in (s.logprobs[t] for t in b.free_T)])
    for lm in (padded, TrieModel(model())):
        torch.testing.assert_close(free_logprobs(lm, batch)[0].detach(), drawn, rtol=1e-3, atol=1e-4)


def test_a_recurrent_model_gives_what_generate_gives(mamba_dir: Path) -> None:
    model = mamba(mamba_dir)
    rows = prompts(5)
    found = decode(PaddedDecoder(PaddedModel(model), frozenset(), 10_000), [Stream(p, 7, 0.0, draw(0)) for p in rows])
    for stream, prompt in zip(found, rows, strict=True):
        expected = model.generate(torch.tensor([prompt]), max_new_tokens=7, min_new_tokens=7, do_sample=False)
        # generate may not draw the end before 7 tokens.
        if 0 not in stream.ids:
            assert stream.ids == expected[0, len(prompt) :].tolist()
    assert any(0 not in stream.ids for stream in found)


@pytest.mark.parametrize("budget", [None, 90])
def test_a_recurrent_model_has_the_gradient_of_one_sequence_at_a_time(mamba_dir: Path, budget: int | None) -> None:
    model = mamba(mamba_dir)
    with pytest.warns(UserWarning, match="not plain attention; it runs on padded batches"):
        lm = causal_model(model)
    adapters = Adapters(model, "")
    adapters.create("a", LoraOptions(4, 8.0, 0.0, ["in_proj", "x_proj"]), seed=1)
    parameters = adapters.parameters("a")
    torch.manual_seed(1)
    for tensor in parameters.values():
        torch.nn.init.normal_(tensor, std=0.05)
    batch = samples(200, seed=3)
    with adapters.active("a", train=True):
        expected = [plain_logprobs(model, sample) for sample in batch]
        torch.cat(expected).square().sum().backward()
        wanted = {name: p.grad for name, p in parameters.items()}
        for p in parameters.values():
            p.grad = None
        parts = 0
        for part in in_parts(lm, batch, budget):
            together = torch.cat([expected[i].detach() for i in part.members])
            torch.testing.assert_close(part.logprobs_F.detach(), together, rtol=1e-4, atol=1e-4)
            part.logprobs_F.square().sum().backward()
            parts += 1
            assert budget is None or part.computed <= budget
    assert parts == 1 if budget is None else parts > 5
    for name, p in parameters.items():
        assert wanted[name].norm() > 0 and (p.grad - wanted[name]).norm() / wanted[name].norm() < 1e-4


def test_batches_hold_their_padding_too() -> None:
    groups = padded_groups([3, 9, 4, 1, 20, 4], 12)
    assert groups == [[4], [1], [2, 5, 0], [3]]
    assert padded_groups([3, 9], None) == [[1, 0]]


SPEC = """\
mmc: 1
name: recurrent
models: {policy: {type: local, source: "path:nowhere"}}
modules: {pick: {model: policy, template: pick.j2, inputs: {q: str}, outputs: {a: {enum: [red, green]}}, constrain: true}}
program: {inputs: {q: str}, steps: [{call: pick}], outputs: {a: "{{ pick.a }}"}}
metric: {type: exact, predicted: a, gold: gold}
"""


def test_a_recurrent_model_learns(mamba_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "pick.j2").write_text("{% user %}{{ q }}{% enduser %}")
    (tmp_path / "spec.yaml").write_text(SPEC)
    program = Program.build(load(tmp_path / "spec.yaml"))
    with pytest.warns(UserWarning, match="padded batches") as said:
        engine = LocalEngine(mamba(mamba_dir), AutoTokenizer.from_pretrained(mamba_dir))
    assert len([one for one in said if "padded batches" in str(one.message)]) == 1
    examples = [Example(str(i), {"q": f"question {i}", "gold": "green"}) for i in range(4)]
    config = MmGrpo(steps=12, examples=4, rollouts=6, learning_rate=0.02, lora={"targets": ["in_proj", "x_proj"]})  # type: ignore[arg-type]
    rewards: list[float] = []
    drifts: list[float] = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(
            TrainingJob(
                program,
                {"policy": engine},
                examples,
                [],
                config,
                0,
                tmp_path / "t",
                on_step=lambda r: (rewards.append(r.reward), drifts.append(r.drift)),  # type: ignore[func-returns-value]
            )
        )
    assert rewards[-1] > 0.9 > rewards[0] and max(drifts) < 1e-3


def test_layers_that_take_no_adapter_are_named(mamba_dir: Path) -> None:
    with pytest.raises(UsageError, match=r"out_proj.*lora\.targets"):
        Adapters(mamba(mamba_dir), "").create("a", LoraOptions(4, 8.0, 0.0, "all-linear"), seed=1)


def test_a_model_without_a_head_is_refused() -> None:
    class Headless:
        def get_decoder(self) -> object:
            return self

        def get_output_embeddings(self) -> None:
            return None

    with pytest.raises(ValueError, match="Headless has no backbone and head"):
        CausalModel(Headless())  # type: ignore[arg-type]
