"""Texts for slots that a model writes, each checked before anything is run with it.

A proposal is data. It is refused when it is empty, too long, what stands there already or template code, when the template
with it expects other inputs or cannot be rendered, or no longer names the outputs that it named; the proposer hears why and
tries again.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from mmc.engine.base import Key, Message, Request, Sampling, seed_of
from mmc.errors import RunFailure
from mmc.program.graph import Program
from mmc.program.outputs import format_of
from mmc.prompt import DEMOS, Template, escape
from mmc.search.base import SearchJob
from mmc.search.journal import Journal
from mmc.search.ledger import Ledger, usage_of, usage_of_proposal
from mmc.search.space import Option, filled
from mmc.spec.searches import Proposing

ATTEMPTS = 3
"""How often a proposer may try to write one text."""
SHOWN = 1200
"""Longest text of a case that a proposer is shown, in characters."""
_ASK = Template.load(Path(__file__).with_name("propose.j2"))
_FENCE = re.compile(r"^```\w*\n(.*?)\n?```$", re.DOTALL)


class Place(NamedTuple):
    """A slot whose text may be rewritten."""

    module: str
    slot: str


@dataclass(frozen=True)
class Task:
    """A text to write: for a slot of ``program``, with finished calls to learn from and a tip. ``key`` names it."""

    program: Program
    place: Place
    key: Key
    cases: Sequence[str] = ()
    tip: str = ""


class Proposal(NamedTuple):
    """A text that can be used, None when there is none; and why others were refused."""

    text: str | None
    refused: tuple[str, ...]


def places(program: Program) -> dict[Place, str]:
    """The slots that a text can be proposed for, and what they say now: plain text, in modules that are no judges."""
    judges = {judge.module for judge in program.judges}
    return {
        Place(name, slot): source.strip()
        for name, template in program.templates.items()
        for slot, source in template.slots.items()
        if name not in judges and slot != DEMOS and escape(source) == source
    }


@dataclass(frozen=True)
class Proposer:
    """Asks the model named ``model``; answers are kept in the journal. ``samples``: inputs of one call of each module."""

    job: SearchJob
    journal: Journal
    ledger: Ledger
    model: str
    samples: Mapping[str, Mapping[str, Any]]

    @property
    def config(self) -> Proposing:
        assert isinstance(self.job.config, Proposing)
        return self.job.config

    def propose(self, tasks: Sequence[Task]) -> list[Proposal]:
        """A text for each task, all asked for at once; what was refused is asked for again, with the reason."""
        talks = {number: list(self._question(task)) for number, task in enumerate(tasks)}
        texts: dict[int, str] = {}
        reasons: list[list[str]] = [[] for _ in tasks]
        for attempt in range(ATTEMPTS):
            waiting = [number for number in talks if number not in texts]
            if not waiting or self.ledger.spent:
                break
            answers = self._answers([((*tasks[n].key, attempt), talks[n]) for n in waiting])
            for number, text in zip(waiting, answers, strict=True):
                task = tasks[number]
                sample = self.samples.get(task.place.module)
                problem = problem_of(task.program, task.place, text, sample, self._tokens, self.config)
                if not problem:
                    texts[number] = text
                    continue
                reasons[number].append(problem)
                again = f"That cannot be used: {problem}. Write another text, and nothing else."
                talks[number] += [Message("assistant", text or "(nothing)"), Message("user", again)]
        return [Proposal(texts.get(number), tuple(reasons[number])) for number in talks]

    def _question(self, task: Task) -> tuple[Message, ...]:
        spec, template = task.program.spec, task.program.templates[task.place.module]
        modules = [{"name": n, "inputs": list(m.inputs), "outputs": list(m.outputs)} for n, m in spec.modules.items()]
        return _ASK.render(
            {
                "description": spec.description,
                "modules": modules,
                "name": task.place.module,
                "slot": task.place.slot,
                "template": template.source,
                "text": template.slots[task.place.slot].strip(),
                "cases": [case[:SHOWN] for case in task.cases],
                "tip": task.tip,
                "words": max(1, self.config.slot_tokens * 2 // 3),
            }
        )

    def _answers(self, questions: Sequence[tuple[Key, Sequence[Message]]]) -> list[str]:
        """What the model wrote, now or in an earlier process."""
        names = [["propose", *key, seed_of([(m.role, m.content) for m in messages])] for key, messages in questions]
        fresh = [number for number, name in enumerate(names) if name not in self.journal]
        done = dict(zip(fresh, self._ask([questions[number] for number in fresh]), strict=True)) if fresh else {}
        texts = []
        for number, name in enumerate(names):
            record = self.journal.once(name, lambda number=number: done[number])  # type: ignore[misc]
            self.ledger.add(record["usage"])
            text = str(record["text"]).strip()
            fenced = _FENCE.match(text)
            texts.append((fenced[1] if fenced else text).strip().strip('"').strip())
        return texts

    def _ask(self, questions: Sequence[tuple[Key, Sequence[Message]]]) -> list[dict[str, Any]]:
        engine = self.job.engines[self.model]
        sampling = Sampling(self.config.temperature, self.config.slot_tokens + 64)

        async def one(key: Key, messages: Sequence[Message]) -> dict[str, Any]:
            request = Request(("propose", *key), tuple(messages), sampling, seed=self.job.seed)
            try:
                with engine.client():
                    done = await engine.complete(request)
            except RunFailure as error:
                return {"text": "", "error": str(error), "usage": usage_of([])}
            return {"text": done.text, "usage": usage_of_proposal(done)}

        async def everything() -> list[dict[str, Any]]:
            return list(await asyncio.gather(*(one(key, messages) for key, messages in questions)))

        return asyncio.run(everything())

    def _tokens(self, module: str, text: str) -> int:
        """Tokens of ``text`` for the model that reads it; the chat's own are subtracted."""
        engine = self.job.engines[self.job.program.spec.modules[module].model]
        return engine.count_tokens([Message("user", text)]) - engine.count_tokens([Message("user", "")])


def problem_of(
    program: Program,
    place: Place,
    text: str,
    sample: Mapping[str, Any] | None,
    tokens: Callable[[str, str], int],
    config: Proposing,
) -> str:
    """Why ``text`` cannot stand in a slot; empty when it can. ``tokens`` is a function of (module, text)."""
    template = program.templates[place.module]
    if not text:
        return "it is empty"
    if text == template.slots[place.slot].strip():
        return "it is what stands there already"
    if escape(text) != text:
        return "it holds template code (braces); only plain text may stand there"
    count = tokens(place.module, text)
    if count > config.slot_tokens:
        return f"it has {count} tokens, at most {config.slot_tokens} are allowed"
    made = filled(program, place.module, template, {place.slot: Option("", text)}, sample)
    if isinstance(made, str):
        return made
    lost = [name for name in _named(program, place.module, template) if not _mentions(made.source, name)]
    return f"it no longer says that the answer holds {', '.join(lost)}" if lost else ""


def _named(program: Program, module: str, template: Template) -> list[str]:
    """Outputs that the template speaks of, where a completion must name them."""
    config = program.spec.modules[module]
    return [n for n in config.outputs if format_of(config) != "text" and _mentions(template.source, n)]


def _mentions(text: str, name: str) -> bool:
    return re.search(rf"\b{re.escape(name)}\b", text) is not None
