"""A scripted engine: for the flow of programs alone. What a real engine does is tested with a real one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import pytest

from mmc.engine.base import Completion, Message, Request
from mmc.program.graph import Program
from mmc.spec import load


class ScriptedEngine:
    """Answers by a function of the request; counts clients."""

    width = None

    def __init__(self, answer: Callable[[Request], str]) -> None:
        self.answer, self.clients, self.most, self.requests = answer, 0, 0, list[Request]()

    async def complete(self, request: Request) -> Completion:
        self.requests.append(request)
        text = self.answer(request)
        return Completion(text.removesuffix("<cut>"), "length" if text.endswith("<cut>") else "stop")

    @contextmanager
    def client(self) -> Iterator[None]:
        self.clients += 1
        self.most = max(self.most, self.clients)
        try:
            yield
        finally:
            self.clients -= 1

    def elsewhere(self) -> AbstractContextManager[None]:
        return nullcontext()

    def count_tokens(self, messages: Sequence[Message]) -> int:
        return sum(len(m.content) for m in messages)

    def close(self) -> None:
        pass


HEAD = """\
mmc: 1
name: flow
models:
  policy: {type: local, source: "path:nowhere"}
tools:
  shout: {type: python, function: "flow_tools:shout"}
  broken: {type: python, function: "flow_tools:broken"}
  slow: {type: python, function: "flow_tools:slow", timeout: 0.05}
modules:
  echo:
    model: policy
    template: echo.j2
    inputs: {text: str}
    outputs: {said: str}
  number:
    model: policy
    template: echo.j2
    inputs: {text: str}
    outputs: {n: int}
metric: {type: exact, predicted: out, gold: gold}
program:
  inputs: {text: str}
"""

TOOLS = """
import time


def shout(text):
    return text.upper()


def broken(**arguments):
    raise ValueError("no luck")


def slow():
    time.sleep(0.5)
"""


@pytest.fixture
def build(tmp_path: Path) -> Callable[[str], Program]:
    def make(steps: str, head: str = HEAD) -> Program:
        (tmp_path / "echo.j2").write_text("{{ text }}")
        (tmp_path / "flow_tools.py").write_text(TOOLS)
        (tmp_path / "spec.yaml").write_text(head + steps)
        return Program.build(load(tmp_path / "spec.yaml"), trust=True)

    return make


@pytest.fixture
def scripted() -> type[ScriptedEngine]:
    return ScriptedEngine
