"""Remote models in programs, and what is LiteLLM's alone."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from mmc.build.lock import make_lock
from mmc.compile.state import State
from mmc.data import Example
from mmc.engine import open_engine, open_engines
from mmc.engine.litellm import LiteLlmEngine
from mmc.engine.local import LocalEngine
from mmc.errors import EnvironmentProblem, InvalidError, UsageError
from mmc.mmgrpo.group import Rewards, form_groups
from mmc.mmgrpo.teacher import open_teachers, teach
from mmc.mmgrpo.train import TrainingJob, train
from mmc.program.check import check
from mmc.program.graph import Program
from mmc.program.run import RunSettings, run_all
from mmc.spec import load
from mmc.spec.model import LiteLlmModel, MmGrpo, Teacher

from .remote_api import GOOD, KEY, Api, Handler, answers, ask


@pytest.fixture
def engine(api: Api) -> Iterator[Callable[..., LiteLlmEngine]]:
    opened = []

    def open_(**keys: Any) -> LiteLlmEngine:
        given = {"type": "litellm", "model": "openai/tiny", "api_key": "${env:TINY_KEY}", "api_base": api.url, **keys}
        opened.append(LiteLlmEngine(LiteLlmModel(**given)))
        return opened[-1]

    yield open_
    for one in opened:
        one.close()


def test_what_calls_cost_is_litellms_to_say(api: Api, engine: Any) -> None:
    (priced,) = answers(engine(model="openai/gpt-4.1-mini"), ask())
    assert priced.metadata["cost"] == pytest.approx(11 * 0.4e-6 + 3 * 1.6e-6)  # type: ignore[union-attr]


def test_what_the_machine_lacks_is_said_at_the_opening(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EnvironmentProblem, match="openai/gpt"):
        engine(model="nonsense", api_base=None)
    monkeypatch.delenv("TINY_KEY")
    with pytest.raises(EnvironmentProblem, match="export TINY_KEY="):
        engine()
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    (found,) = answers(engine(api_key=None, retries=0), ask())
    assert isinstance(found, EnvironmentProblem) and "api_key: ${env:NAME}" in str(found)
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "litellm", None)
        with pytest.raises(EnvironmentProblem, match=r"pip install 'mmc\[remote\]'"):
            engine()


# --- in a program ---

SPEC = """\
mmc: 1
name: mixed
models:
  policy: {type: local, source: "path:MODEL"}
  big: {type: litellm, model: openai/tiny, api_key: "${env:TINY_KEY}", api_base: "${env:TINY_BASE}", retries: 2}
modules:
  hint: {model: big, template: hint.j2, inputs: {q: str}, outputs: {t: str}, max_tokens: 4, train: false}
  pick:
    {model: policy, template: pick.j2, inputs: {q: str, t: str}, outputs: {a: {enum: [red, green, blue]}}, constrain: true}
program:
  inputs: {q: str}
  steps: [{call: hint}, {call: pick, with: {t: "{{ hint.t }}"}}]
  outputs: {a: "{{ pick.a }}"}
metric: {type: exact, predicted: a, gold: gold}
"""
EXAMPLES = [Example(str(i), {"q": f"question {i}", "gold": ["red", "green", "blue"][i % 3]}) for i in range(6)]


def write(folder: Path, model: Path, *changes: tuple[str, str]) -> Path:
    text = SPEC.replace("MODEL", str(model))
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    (folder / "hint.j2").write_text("{% user %}{{ q }}{% enduser %}")
    (folder / "pick.j2").write_text("{% user %}{{ q }} {{ t }}{% enduser %}")
    (folder / "spec.yaml").write_text(text)
    return folder / "spec.yaml"


def tiny(folder: Path) -> Callable[[Handler, dict[str, Any], int], None]:
    """The tiny model itself, behind the API."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    lock = threading.Lock()

    def answer(h: Handler, body: dict[str, Any], n: int) -> None:
        prompt = tokenizer.apply_chat_template(
            body["messages"], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        with lock:
            whole = model.generate(**prompt, max_new_tokens=body["max_tokens"], do_sample=False)[0]
        before = prompt["input_ids"].shape[1]
        made = whole[before:]
        ended = int(made[-1]) == tokenizer.eos_token_id
        message = {"role": "assistant", "content": tokenizer.decode(made, skip_special_tokens=True)}
        choice = {"index": 0, "finish_reason": "stop" if ended else "length", "message": message}
        usage = {"prompt_tokens": before, "completion_tokens": len(made), "total_tokens": len(whole)}
        h.reply({**GOOD, "choices": [choice], "usage": usage})

    return answer


@pytest.fixture
def mixed(api: Api, tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("TINY_BASE", api.url)
    program = Program.build(load(write(tmp_path, tiny_model_dir)))
    engines = open_engines(program.loaded)
    yield program, engines
    for engine in engines.values():
        engine.close()


def test_a_program_with_a_frozen_remote_module_trains(
    api: Api, mixed: Any, tiny_model_dir: Path, tmp_path: Path
) -> None:
    program, engines = mixed
    api.answer = tiny(tiny_model_dir)
    config = MmGrpo(steps=2, examples=3, rollouts=4, learning_rate=1e-2)
    job = TrainingJob(program, engines, EXAMPLES, EXAMPLES[:3], config, 0, tmp_path / "t")
    result = train(job)
    assert set(result.adapters) == {"pick"}
    weights = load_file(result.adapters["pick"] / "adapter_model.safetensors")
    assert any(tensor.abs().max() > 0 for name, tensor in weights.items() if "lora_B" in name), "it begins at 0"
    assert len(api.bodies) == 2 * 3 * 4, "one remote call a run"
    steps = [json.loads(line) for line in (tmp_path / "t" / "metrics.jsonl").read_text().splitlines()]
    assert [step["groups"] for step in steps] == [3, 3], "one an example: the remote calls form none"

    runs = run_all(result.program, engines, EXAMPLES, RunSettings("eval", 0, 0, 1.0), rollouts=2)
    assert [(run.ending, len(run.calls)) for run in runs] == [("done", 2)] * 12
    local: LocalEngine = engines["policy"]
    for run in runs:
        hint = run.calls[0].completion
        assert hint.prompt_tokens == local.count_tokens(run.calls[0].messages) and 0 < hint.completion_tokens <= 4
        assert not hint.ids_T and not hint.exact
    assert {group.module for group in form_groups(runs, ["pick"], Rewards())} == {"pick"}


def test_a_remote_teacher_of_a_constrained_module_is_read_not_constrained(api: Api, mixed: Any) -> None:
    def answer(h: Handler, body: dict[str, Any], n: int) -> None:
        asked = body["messages"][0]["content"]
        said = "hint" if "hint" not in asked else "I cannot tell." if asked.startswith("question 2") else "blue"
        message = {"role": "assistant", "content": said}
        h.reply({**GOOD, "choices": [{"index": 0, "finish_reason": "stop", "message": message}]})

    api.answer = answer
    program, engines = mixed
    teachers = open_teachers(program, [Teacher(model="big", rollouts=1)], ["pick"], engines, False)
    runs = teach(teachers, program, engines["policy"], ["pick"], EXAMPLES[:3], ("weights", 0, 0))
    assert [run.example_id for run in runs] == ["0", "1"], "the third cannot be read"
    for run in runs:
        taught = run.calls[1].completion
        assert (run.calls[1].module, taught.text, taught.exact) == ("pick", "blue", False)
        assert len(taught.ids_T) == len("blue") + 1 and all(a is not None for a in taught.allowed_T), (
            "in the student's tokens and constraint"
        )


def test_no_example_is_lost_where_the_api_fails(api: Api, mixed: Any) -> None:
    def answer(h: Handler, body: dict[str, Any], n: int) -> None:
        if body["messages"][0]["content"] == "question 2":
            h.fail(500)
        elif n % 3 == 0:
            with suppress(OSError):
                h.connection.close()
        else:
            h.reply(GOOD)

    api.answer = answer
    program, engines = mixed
    runs = run_all(program, engines, EXAMPLES, RunSettings("eval", 0, 0, 0.0))
    assert [run.example_id for run in runs] == [e.id for e in EXAMPLES]
    assert runs[2].ending == "failed" and "openai/tiny" in (runs[2].error or "")
    assert sum(run.ending == "done" for run in runs) >= 3, (
        "a cut connection may cut all three attempts, not all examples"
    )
    api.answer = lambda h, body, n: h.fail(401)
    with pytest.raises(EnvironmentProblem, match="refused the key"):
        run_all(program, engines, EXAMPLES, RunSettings("eval", 1, 0, 0.0))


def test_runs_of_a_tree_share_remote_calls_too(api: Api, mixed: Any) -> None:
    def answer(h: Handler, body: dict[str, Any], n: int) -> None:
        message = {"role": "assistant", "content": f"hint {n}"}
        h.reply({**GOOD, "choices": [{"index": 0, "finish_reason": "stop", "message": message}]})

    api.answer = answer
    program, engines = mixed
    runs = run_all(program, engines, EXAMPLES[:1], RunSettings("weights", 0, 0, 1.0, tree=(2, 2)), rollouts=4)
    texts = [run.calls[0].completion.text for run in runs]
    assert len(api.bodies) == 2 and texts[0] == texts[1] != texts[2] == texts[3]


def test_the_key_is_in_nothing_that_is_written(mixed: Any) -> None:
    program, engines = mixed
    written = json.dumps([State(program).fingerprint(), make_lock(program, {}, {})])
    assert KEY not in written and "${env:TINY_KEY}" in written and KEY not in repr(vars(program.loaded))
    assert '"litellm:openai/tiny"' in written and KEY not in repr(engines["big"])


WRONG = [
    (
        "4, train: false}",
        "4, train: false, constrain: true}",
        "spec.yaml:7:118: error: a `type: litellm` model is constrained to JSON alone",
    ),
    ('"${env:TINY_KEY}"', f'"{KEY}"', "spec.yaml:5:53: error: a key does not belong in a file"),
    (
        "metric:",
        "adapters: {hint: some/folder}\nmetric:",
        "spec.yaml:14:18: error: adapters need a `type: local` model",
    ),
]


@pytest.mark.parametrize(("old", "new", "message"), WRONG, ids=["constrain", "key", "adapter"])
def test_the_check_finds_what_a_remote_model_cannot_do(tmp_path: Path, old: str, new: str, message: str) -> None:
    loaded = load(write(tmp_path, Path("nowhere"), (old, new)))
    (found,) = [d for d in check(loaded) if d.severity == "error"]
    assert message in found.render() and KEY not in found.render()
    with pytest.raises(InvalidError):
        Program.build(loaded)


def test_adapters_for_a_remote_model_are_refused_at_the_opening(tmp_path: Path) -> None:
    loaded = load(write(tmp_path, Path("nowhere"), ("metric:", "adapters: {hint: some/folder}\nmetric:")))
    with pytest.raises(UsageError, match="type: local"):
        open_engine(loaded, "big")


def test_prices_come_from_litellms_own_table(engine: Any) -> None:
    engine()
    assert os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] == "True"
