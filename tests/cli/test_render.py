"""`mmc render`: messages, their tokens, and what all examples share."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmc.cli import execute

SPEC = """\
mmc: 1
name: tiny
models:
  policy: {type: local, source: "path:SOURCE"}
  far: {type: litellm, model: openai/gpt-4.1-mini}
modules:
  answer:
    model: policy
    template: answer.j2
    inputs: {question: str}
    outputs: {answer: str}
  judge:
    model: far
    template: judge.j2
    inputs: {question: str, answer: str}
    outputs: {good: bool}
    train: false
program:
  inputs: {question: str}
  steps:
    - call: answer
    - call: judge
      with: {answer: "{{ answer.answer }}"}
  outputs: {good: "{{ judge.good }}"}
data:
  train: {file: train.jsonl}
  dev: {file: dev.jsonl}
  test: {file: test.jsonl}
"""


@pytest.fixture
def folder(tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "spec.yaml").write_text(SPEC.replace("SOURCE", str(tiny_model_dir)))
    (tmp_path / "answer.j2").write_text("{% system %}Be kind.{% endsystem %}{% user %}Q: {{ question }}{% enduser %}")
    (tmp_path / "judge.j2").write_text("{{ question }} {{ answer }}")
    for split in ("train", "dev", "test"):
        rows = [{"question": f"what is {word}"} for word in ("up", "over", "on")]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def rendered(capsys: pytest.CaptureFixture[str], *options: str) -> dict[str, dict[str, object]]:
    assert execute(["render", "spec.yaml", "--json", *options]) == 0
    return json.loads(capsys.readouterr().out)  # type: ignore[no-any-return]


def test_the_tokens_are_those_that_the_engine_sends(
    folder: Path, tiny_model_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from mmc.engine import open_engines
    from mmc.engine.base import Message
    from mmc.spec import load

    found = rendered(capsys, "--module", "answer")["answer"]
    messages = [Message(**m) for m in found["messages"]]  # type: ignore[attr-defined]
    assert [m.content for m in messages] == ["Be kind.", "Q: what is up"]
    assert found["tokens"] == open_engines(load(folder / "spec.yaml", ["modules.judge.model=policy"]))[
        "policy"
    ].count_tokens(messages)
    # The tiny model has one token a byte, two marks a message and one before the answer.
    assert found["counts"] == [len("Be kind.") + 2, len("Q: what is up") + 2]
    assert found["tokens"] == sum(found["counts"]) + 1  # type: ignore[call-overload]
    assert found["shared"] == {"tokens": len("Be kind.") + 2 + 1 + len("Q: what is "), "examples": 3}


def test_what_is_given_by_hand_ends_the_shared_beginning(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = rendered(capsys, "--module", "answer", "--input", "question=what is up")["answer"]
    assert found["shared"] == {"tokens": len("Be kind.") + 2 + 1 + len("Q: "), "examples": 3}


def test_a_model_that_is_not_there_still_renders(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["render", "spec.yaml", "--module", "answer", "--set", "models.policy.source=path:nowhere"]) == 0
    said = capsys.readouterr().out
    assert "[user]\nQ: what is up\n" in said and "tokens: unknown (no tokenizer with a chat template" in said
    assert execute(["render", "spec.yaml", "--module", "answer", "--no-tokens"]) == 0
    assert "tokens" not in capsys.readouterr().out


def test_the_text_names_counts_and_what_is_shared(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["render", "spec.yaml"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("== answer (answer.j2)\n[system]\nBe kind.\n")
    assert "tokens: 26 (system 10, user 15, the rest is the chat template's)\n" in said
    assert "shared: the first 22 (85%), by 3 examples of dev\n" in said
    assert "== judge: needs answer, made by earlier steps; give --input answer=..." in said


def test_a_remote_model_is_counted_by_litellm(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("litellm")
    found = rendered(capsys, "--module", "judge", "--input", "answer=blue")["judge"]
    assert isinstance(found["tokens"], int) and 5 < found["tokens"] < 20 and found["shared"] is None
