"""Log-probabilities that a module asks for reach `mmc run` and `mmc eval`; an API that gives none is named."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from mmc.cli import execute
from tests.engine.remote_api import GOOD, Api

SPEC = """\
mmc: 1
name: sure
models:
  own: {type: local, source: "path:SOURCE"}
  big: {type: openai, model: tiny, api_base: "ADDRESS", cache: false}
modules:
  answer: {model: MODEL, template: answer.j2, inputs: {q: str}, outputs: {a: str}, max_tokens: 4, logprobs: ASKED}
  again: {model: MODEL, template: answer.j2, inputs: {q: str}, outputs: {a: str}, max_tokens: 4}
program: {inputs: {q: str}, steps: [{call: answer}, {call: again}], outputs: {a: "{{ answer.a }}"}}
data: {train: {file: rows.jsonl}, dev: {file: rows.jsonl}, test: {file: rows.jsonl}}
metric: {type: exact, predicted: a, gold: a}
"""
TOLD = {
    "content": [{"token": "bl", "logprob": -0.5, "bytes": None, "top_logprobs": []}, {"token": "ue", "logprob": -0.25}]
}


@pytest.fixture
def api() -> Iterator[Api]:
    server = Api()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def spec(tmp_path: Path, tiny_model_dir: Path, api: Api) -> Path:
    (tmp_path / "answer.j2").write_text("{% user %}{{ q }}{% enduser %}")
    (tmp_path / "rows.jsonl").write_text('{"q": "what?", "a": "blue"}\n{"q": "and?", "a": "red"}\n')
    text = SPEC.replace("SOURCE", str(tiny_model_dir)).replace("ADDRESS", api.url)
    (tmp_path / "own.yaml").write_text(text.replace("MODEL", "own").replace("ASKED", "true"))
    (tmp_path / "big.yaml").write_text(text.replace("MODEL", "big").replace("ASKED", "true"))
    (tmp_path / "unasked.yaml").write_text(text.replace("MODEL", "big").replace("ASKED", "false"))
    return tmp_path


def tells(api: Api) -> None:
    choice = {**GOOD["choices"][0], "logprobs": TOLD}  # type: ignore[index]
    api.answer = lambda h, body, n: h.reply({**GOOD, "choices": [choice]})


def printed(capsys: pytest.CaptureFixture[str], *command: str) -> tuple[dict[str, object], str]:
    assert execute(list(command)) == 0
    out, err = capsys.readouterr()
    return json.loads(out), err


def test_what_an_api_tells_stands_in_a_run_and_in_a_score(
    spec: Path, api: Api, capsys: pytest.CaptureFixture[str]
) -> None:
    tells(api)
    found, said = printed(capsys, "run", str(spec / "big.yaml"), "--input", "q=what?", "--json")
    answer, again = found["calls"]  # type: ignore[misc]
    assert answer["tokens"] == [{"token": "bl", "logprob": -0.5}, {"token": "ue", "logprob": -0.25}]  # type: ignore[index]
    assert found["outputs"] == {"a": "blue"} and "tokens" not in again and "note:" not in said
    assert [body.get("logprobs") for body in api.bodies] == [True, None], "they are asked for where the spec asks alone"
    found, _ = printed(capsys, "eval", str(spec / "big.yaml"), "--json")
    assert found["logprobs"] == {"answer": {"calls": 2, "silent": 0, "mean": -0.375}}
    assert execute(["eval", str(spec / "big.yaml")]) == 0
    assert "answer: mean log-probability of a token -0.375" in capsys.readouterr().out


def test_an_api_that_tells_none_is_named(spec: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found, said = printed(capsys, "run", str(spec / "big.yaml"), "--input", "q=what?", "--json")
    assert "tokens" not in found["calls"][0]  # type: ignore[index]
    note = "answer asks for log-probabilities (`logprobs: true`), but 1 of 1 completions of tiny came without"
    assert said.count(note) == 1
    found, said = printed(capsys, "eval", str(spec / "big.yaml"), "--json")
    assert found["logprobs"] == {"answer": {"calls": 2, "silent": 2, "mean": None}} and "2 of 2 completions" in said


def test_nothing_is_told_unasked(spec: Path, api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    tells(api)
    found, said = printed(capsys, "eval", str(spec / "unasked.yaml"), "--json")
    assert "logprobs" not in found and "note:" not in said


def test_a_local_model_tells_its_tokens(spec: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found, said = printed(capsys, "run", str(spec / "own.yaml"), "--input", "q=what?", "--json")
    answer, again = found["calls"]  # type: ignore[misc]
    tokens = answer["tokens"]  # type: ignore[index]
    assert 1 <= len(tokens) <= 4 and all(token["logprob"] <= 0 for token in tokens) and "tokens" not in again
    assert "".join(token["token"] for token in tokens).startswith(answer["completion"][:1])  # type: ignore[index]
    assert "note:" not in said
