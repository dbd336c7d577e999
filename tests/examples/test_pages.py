"""The example pages are true: every command on them runs and says what they say; at toy size, on a tiny random model."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.engine.test_litellm import Api, Handler, api
from tests.examples.pages import Page
from tests.examples.test_specs import toy

__all__ = ["api"]


def test_tools_and_metrics(
    tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def more(command: str) -> Sequence[str]:
        return ["--set", f"models.policy.source=path:{tiny_model_dir}"] if command in ("run", "eval") else []

    page = Page("tools_and_metrics", monkeypatch, capfd)
    monkeypatch.delitem(sys.modules, "shop", raising=False)
    page.run(tmp_path, more)
    assert page.of("mmc check") == "shop.yaml: ok (1 module, 1 tool)\n"
    ran = page.of("mmc run shop.yaml --input 'question=Do you have apples?' --trust")
    assert json.loads(ran.splitlines()[0])["left"] in (12, 0, 7) and '"tool": "stock"' in ran
    assert "2 examples" in page.of("mmc eval shop.yaml --split test --trust --set")


def test_remote_models(
    tmp_path: Path, tiny_model_dir: Path, api: Api, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("litellm")

    def answer(handler: Handler, body: dict[str, object], number: int) -> None:
        asked = json.dumps(body["messages"])
        text = "true" if "Is the answer right?" in asked else "Name the colour in one word."
        usage = {"prompt_tokens": 50, "completion_tokens": 2, "total_tokens": 52}
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
        handler.reply(
            {
                "id": "1",
                "object": "chat.completion",
                "created": 1,
                "model": "gpt-4.1-mini",
                "choices": [choice],
                "usage": usage,
            }
        )

    def more(command: str) -> Sequence[str]:
        if command in ("check",):
            return []
        return [
            "--set", f"models.policy.source=path:{tiny_model_dir}", "--set", f"models.large.api_base={api.url}",
        ]  # fmt: skip

    api.answer = answer
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    page = Page("remote_models", monkeypatch, capfd)
    page.run(tmp_path, more)
    assert "gpt-4.1-mini" in page.of("mmc doctor")
    assert "tokens: " in page.of("mmc render") and "unknown" not in page.of("mmc render")
    assert "$" in page.of("mmc plan")
    assert "after prompts" in page.of("mmc compile") and api.keys == {"Bearer ..."}
    asked = [json.dumps(body["messages"]) for body in api.bodies]
    assert any("Is the answer right?" in text for text in asked) and not all(
        "Is the answer right?" in text for text in asked
    )
    assert "sk-" not in (tmp_path / "build/quiz/v1/program.yaml").read_text()


def test_git_workflow(
    tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for role in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{role}_NAME", "Somebody")
        monkeypatch.setenv(f"GIT_{role}_EMAIL", "somebody@example.org")

    def more(command: str) -> Sequence[str]:
        if command in ("eval", "compile", "plan"):
            return [word for one in toy(tmp_path / "helpdesk.yaml", tiny_model_dir) for word in ("--set", one)]
        return []

    page = Page("git_workflow", monkeypatch, capfd)
    page.run(tmp_path, more)
    assert "score, from the build's own start" in page.of("mmc diff")
    assert "same" in page.of("mmc verify") and "changed" not in page.of("mmc verify")
    assert "::error file=helpdesk.yaml," in page.of("mmc check helpdesk.yaml --format github --set")
    assert "against build/helpdesk/v1" in page.of("mmc eval helpdesk.yaml --split test --baseline")
    assert "nothing to do" in page.of("mmc migrate")
    assert (tmp_path / ".github/workflows/program.yml").is_file()
