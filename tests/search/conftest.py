"""A small program in a folder, and an engine whose answers are as good as a test says its prompts are."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from mmc.data import Example
from mmc.engine.base import Choice, Completion, Message, Request, seed_of
from mmc.program.graph import Program
from mmc.search import SearchJob
from mmc.spec.load import load
from mmc.spec.model import HalvingSearch

COLOURS = ["red", "green", "blue", "black"]
TEMPLATE = """\
{# the colour of a thing #}
{% system %}
Colours: {{ choices.colour | join(", ") }}
{% slot instruction %}
Name the colour.
{% endslot %}
Answer in one word.
{% endsystem %}
{% slot demos %}
{% endslot %}
{% user %}
Thing: {{ thing }}
{% enduser %}
"""
SPEC = """\
mmc: 1
name: colours
models:
  policy: {type: local, source: "path:nowhere"}
modules:
  classify:
    model: policy
    template: classify.j2
    alternatives: []
    candidates: {instruction: []}
    inputs: {thing: str}
    outputs: {colour: {enum: [red, green, blue, black]}}
    constrain: true
program:
  inputs: {thing: str}
  steps: [{call: classify}]
  outputs: {colour: "{{ classify.colour }}"}
metric: {type: exact, predicted: colour, gold: gold}
"""


def colour_of(thing: str) -> str:
    return COLOURS[seed_of("colour", thing) % len(COLOURS)]


def examples(split: str, count: int) -> list[Example]:
    rows = [{"thing": f"{split} thing {i}", "gold": colour_of(f"{split} thing {i}")} for i in range(count)]
    return [Example(f"{i}", row) for i, row in enumerate(rows)]


@dataclass
class Scripted:
    """Names the right colour with the probability that ``quality`` gives a prompt, else a wrong one.

    ``luck`` is what draws depend on beside the thing: the prompt by default, so that equally good prompts err on
    different things.
    """

    quality: Callable[[Sequence[Message]], float]
    luck: Callable[[Sequence[Message]], object] = lambda messages: [m.content for m in messages]
    requests: list[Request] = field(default_factory=list)
    counts: bool = True

    async def complete(self, request: Request) -> Completion:
        self.requests.append(request)
        truth = colour_of(request.messages[-1].content.removeprefix("Thing: "))
        draw = seed_of(self.luck(request.messages), request.sampling.temperature, request.messages[-1].content) / 2**63
        assert isinstance(request.constraint, Choice)
        wrong = [option for option in request.constraint.options if option != truth]
        text = truth if draw < self.quality(request.messages) else wrong[seed_of(draw) % len(wrong)]
        return Completion(text, "stop", prompt_tokens=self.count_tokens(request.messages) if self.counts else 0)

    width = None

    @contextmanager
    def client(self) -> Iterator[None]:
        yield

    keeping = client

    def count_tokens(self, messages: Sequence[Message]) -> int:
        return sum(len(m.content.split()) for m in messages)

    def close(self) -> None:
        pass


@dataclass
class Bench:
    """Makes programs and jobs below one folder."""

    folder: Path
    spec = SPEC

    def program(
        self, candidates: Sequence[str] = (), template: str = TEMPLATE, spec: str = SPEC, **files: str
    ) -> Program:
        for name, text in {"classify.j2": template, **{f"{k}.j2": v for k, v in files.items()}}.items():
            (self.folder / name).write_text(text)
        text = spec.replace("instruction: []", f"instruction: {json.dumps(list(candidates))}")
        others = ", ".join(f"{name}.j2" for name in files)
        (self.folder / "spec.yaml").write_text(text.replace("alternatives: []", f"alternatives: [{others}]"))
        return Program.build(load(self.folder / "spec.yaml"))

    def job(self, program: Program, engine: Scripted, run: str = "run", **changes: Any) -> SearchJob:
        own = {"trials": 6, "demos": 0, "examples": 32, "bootstrap": 16}
        config = changes.pop("config", {})
        config = HalvingSearch(**own | config) if isinstance(config, dict) else config
        values: dict[str, Any] = {
            "program": program,
            "engines": {"policy": engine},
            "train": examples("train", 60),
            "dev": examples("dev", 128),
            "config": config,
            "seed": 0,
            "folder": self.folder / run,
        }
        return SearchJob(**values | changes)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@pytest.fixture
def scripted() -> type[Scripted]:
    return Scripted


@pytest.fixture
def make_examples() -> Callable[[str, int], list[Example]]:
    return examples
