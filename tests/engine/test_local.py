from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from mmc.engine.adapters import LoraOptions
from mmc.engine.base import Choice, Completion, JsonSchema, Message, Regex, Request, Sampling
from mmc.engine.local import LocalEngine
from mmc.errors import EnvironmentProblem, RunFailure
from mmc.trie.decode import Decoder


@pytest.fixture
def engine(tiny_model_dir: Path) -> LocalEngine:
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir).eval()
    return LocalEngine(model, AutoTokenizer.from_pretrained(tiny_model_dir))


def ask(text: str, key: int = 0, **options: object) -> Request:
    settings = {"sampling": Sampling(1.0, 12)} | options
    return Request(key=("test", key), messages=(Message("user", text),), **settings)  # type: ignore[arg-type]


def complete(engine: LocalEngine, requests: Sequence[Request]) -> list[Completion]:
    async def one(request: Request) -> Completion:
        with engine.client():
            return await engine.complete(request)

    async def everything() -> list[Completion]:
        return await asyncio.gather(*(one(r) for r in requests))

    return asyncio.run(everything())


def test_equal_keys_draw_equal_tokens_whatever_the_company(engine: LocalEngine) -> None:
    alone = complete(engine, [ask("hello", 3)])[0]
    together = complete(engine, [ask(f"hello{i}", i) for i in range(3)] + [ask("hello", 3)])[3]
    assert alone.ids_T == together.ids_T


def test_another_seed_or_key_draws_other_tokens(engine: LocalEngine) -> None:
    found = {c.ids_T for c in complete(engine, [ask("hello", k, seed=s) for k in range(3) for s in range(3)])}
    assert len(found) == 9


def test_a_choice_gives_one_of_its_options(engine: LocalEngine) -> None:
    options = ("alpha", "alphabet", "beta", "ant")
    done = complete(engine, [ask("pick", i, constraint=Choice(options)) for i in range(40)])
    assert {c.text for c in done} == set(options)
    assert all(c.finish == "stop" for c in done)
    for one in done:
        for token, allowed in zip(one.ids_T, one.allowed_T, strict=True):
            assert allowed is not None and token in allowed


def test_a_json_schema_is_followed(engine: LocalEngine) -> None:
    kinds = {"a": {"enum": ["x", "yy"]}, "n": {"type": "boolean"}}
    schema = {"type": "object", "properties": kinds, "required": ["a", "n"], "additionalProperties": False}
    request = ask("json", constraint=JsonSchema(json.dumps(schema)), sampling=Sampling(1.0, 80))
    for one in complete(engine, [request]):
        assert one.finish == "stop"
        value = json.loads(one.text)
        assert value["a"] in ("x", "yy") and isinstance(value["n"], bool)


def test_a_regex_is_followed(engine: LocalEngine) -> None:
    done = complete(engine, [ask("n", i, constraint=Regex("[0-9]{2}-[ab]")) for i in range(5)])
    for one in done:
        assert one.text[:2].isdigit() and one.text[2] == "-" and one.text[3] in "ab"


def test_the_engine_waits_for_every_client(engine: LocalEngine) -> None:
    """A program that is busy with a tool holds the others back, so batches depend on the work alone."""
    order: list[str] = []

    async def quick() -> None:
        with engine.client():
            await engine.complete(ask("quick", 1))
            order.append("quick")

    async def slow() -> None:
        with engine.client():
            await asyncio.sleep(0.05)
            order.append("tool")
            await engine.complete(ask("slow", 2))

    async def both() -> None:
        await asyncio.gather(quick(), slow())

    asyncio.run(both())
    assert order[0] == "tool"


def test_a_prompt_too_long_fails_alone(engine: LocalEngine) -> None:
    async def go() -> list[object]:
        requests = [ask("x" * 5000, 0), ask("short", 1)]

        async def one(request: Request) -> Completion:
            with engine.client():
                return await engine.complete(request)

        return await asyncio.gather(*(one(r) for r in requests), return_exceptions=True)  # type: ignore[return-value]

    long, short = asyncio.run(go())
    assert isinstance(long, RunFailure) and "the model reads at most 4096" in str(long)
    assert isinstance(short, Completion)


def test_an_engine_out_of_memory_tells_all_who_wait_what_to_do(
    engine: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Decoder, "step", lambda decoder: torch.empty(2**60))
    with pytest.raises(EnvironmentProblem, match=r"out of memory in sampling; .* lower the model's `batch_tokens`"):
        complete(engine, [ask("hello"), ask("hello", 1)])


def test_an_unknown_adapter_is_named(engine: LocalEngine) -> None:
    with pytest.raises(EnvironmentProblem, match="no adapter 'nope'"):
        complete(engine, [ask("x", adapter="nope")])


def test_adapters_are_switched_saved_and_loaded(engine: LocalEngine, tmp_path: Path) -> None:
    import torch

    greedy = {"sampling": Sampling(0.0, 10)}
    plain = complete(engine, [ask("hello", **greedy)])[0]
    engine.adapters.create("one", LoraOptions(4, 8.0, 0.0, "all-linear"), seed=1)
    fresh = complete(engine, [ask("hello", adapter="one", **greedy)])[0]
    assert fresh.ids_T == plain.ids_T, "a fresh adapter changes nothing"
    for name, tensor in engine.adapters.parameters("one").items():
        if "lora_B" in name:
            torch.nn.init.normal_(tensor, std=0.5)
    changed = complete(engine, [ask("hello", adapter="one", **greedy)])[0]
    assert changed.ids_T != plain.ids_T
    engine.adapters.save("one", tmp_path / "one")
    engine.adapters.load("two", tmp_path / "one")
    mixed = [
        ask("hello", 0, adapter="two", **greedy),
        ask("hello", 1, **greedy),
        ask("hello", 2, adapter="one", **greedy),
    ]
    assert [c.ids_T for c in complete(engine, mixed)] == [changed.ids_T, plain.ids_T, changed.ids_T]


def test_saved_adapters_load_in_plain_peft(tiny_model_dir: Path, engine: LocalEngine, tmp_path: Path) -> None:
    import torch
    from peft import PeftModel

    engine.adapters.create("one", LoraOptions(4, 8.0, 0.0, "all-linear"), seed=1)
    for tensor in engine.adapters.parameters("one").values():
        torch.nn.init.normal_(tensor.data, std=0.3)
    ours = complete(engine, [ask("hello", adapter="one", sampling=Sampling(0.0, 10))])[0]
    engine.adapters.save("one", tmp_path)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model_dir), str(tmp_path)).eval()
    row = torch.tensor([ours.prompt_ids_T])
    out = model.generate(input_ids=row, attention_mask=torch.ones_like(row), max_new_tokens=10, do_sample=False)
    assert tuple(out[0, row.shape[1] :].tolist()) == ours.ids_T


def test_prompts_stay_computed_between_batches_only_while_they_are_kept(engine: LocalEngine) -> None:
    requests = [ask(f"The same long beginning, and then {i}", i) for i in range(3)]
    plain = [c.ids_T for c in complete(engine, requests)]
    assert not engine._decoders
    with engine.keeping():
        assert [c.ids_T for c in complete(engine, requests)] == plain
        (decoder,) = engine._decoders.values()
        first = decoder.forwarded  # type: ignore[union-attr]
        assert [c.ids_T for c in complete(engine, requests)] == plain
        assert decoder.forwarded - first <= sum(map(len, plain)) < first  # type: ignore[union-attr]
    assert not engine._decoders
