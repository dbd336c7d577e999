"""What a proposer writes is checked before anything is run with it, and it hears why a text was refused."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from mmc.engine.base import Completion, Message, Request
from mmc.errors import EnvironmentProblem
from mmc.search import search
from mmc.search.journal import Journal
from mmc.search.ledger import Ledger, usage_of
from mmc.search.propose import Place, Proposer, Task, places
from mmc.spec.searches import BootstrapSearch, Budget, GepaSearch, MiproSearch

SAMPLE = {"classify": {"thing": "a thing"}}
JSON_TEMPLATE = """\
{% system %}
{% slot instruction %}
Answer with JSON that holds the colour.
{% endslot %}
{% endsystem %}
{% user %}
{{ thing }}
{% enduser %}
"""


@dataclass
class Writer:
    """A proposer that writes what a test says."""

    write: Callable[[int, Sequence[Message]], str]
    asked: list[Request] = field(default_factory=list)
    cost: float | None = 0.5

    async def complete(self, request: Request) -> Completion:
        self.asked.append(request)
        text = self.write(len(self.asked) - 1, request.messages)
        return Completion(text, "stop", prompt_tokens=10, completion_tokens=5, metadata={"cost": self.cost})

    width = None

    @contextmanager
    def client(self) -> Iterator[None]:
        yield

    keeping = elsewhere = client

    def count_tokens(self, messages: Sequence[Message]) -> int:
        return sum(len(m.content.split()) for m in messages)


def proposer(bench: Any, scripted: Any, program: Any, writer: Writer, **config: Any) -> Proposer:
    block = MiproSearch(algorithm="mipro", proposer="writer", **config)
    job = bench.job(program, scripted(lambda m: 0.5), config=block)
    job.engines["writer"] = writer
    return Proposer(job, Journal(job.folder / "journal.jsonl", {}), Ledger(block.budget), "writer", SAMPLE)


def task(program: Any) -> Task:
    return Task(program, Place("classify", "instruction"), ("x",))


BAD = [
    ("", "it is empty"),
    ("Name the colour.", "what stands there already"),
    ("Name {{ thing }}.", "template code"),
    ("{% if thing %}Name it.{% endif %}", "template code"),
    ("word " * 40, "it has 40 tokens, at most 30 are allowed"),
]


@pytest.mark.parametrize(("text", "reason"), BAD)
def test_a_bad_text_goes_back_with_the_reason(bench: Any, scripted: Any, text: str, reason: str) -> None:
    writer = Writer(lambda n, messages: text if n == 0 else "Say which colour it is.")
    program = bench.program()
    ((found, reasons),) = proposer(bench, scripted, program, writer, slot_tokens=30).propose(
        [Task(program, Place("classify", "instruction"), ("x",))]
    )
    assert found == "Say which colour it is." and len(reasons) == 1 and reason in reasons[0]
    said = writer.asked[1].messages[-1].content
    assert reason in said and writer.asked[1].messages[-2].content == (text.strip() or "(nothing)")


def test_after_three_bad_texts_it_gives_up(bench: Any, scripted: Any) -> None:
    writer, program = Writer(lambda n, messages: ""), bench.program()
    ((found, reasons),) = proposer(bench, scripted, program, writer).propose(
        [Task(program, Place("classify", "instruction"), ("x",))]
    )
    assert found is None and len(reasons) == len(writer.asked) == 3


def test_a_text_must_go_on_naming_the_outputs(bench: Any, scripted: Any) -> None:
    spec = bench.spec.replace("constrain: true", "format: json").replace("{enum: [red, green, blue, black]}", "str")
    program = bench.program(template=JSON_TEMPLATE, spec=spec)
    writer = Writer(lambda n, messages: ["Answer in JSON.", "Give JSON with the key colour."][n])
    ((found, reasons),) = proposer(bench, scripted, program, writer).propose(
        [Task(program, Place("classify", "instruction"), ("x",))]
    )
    assert found == "Give JSON with the key colour." and reasons == ("it no longer says that the answer holds colour",)


def test_the_proposer_sees_the_prompt_and_the_text_without_fences_is_taken(bench: Any, scripted: Any) -> None:
    writer, program = Writer(lambda n, messages: '```\n"Do it well."\n```'), bench.program()
    asked = Task(program, Place("classify", "instruction"), ("x",), ["thing: a\nA good answer: red"], "Be brief.")
    ((found, _),) = proposer(bench, scripted, program, writer).propose([asked])
    question = writer.asked[0].messages[-1].content
    assert found == "Do it well."
    for part in ("classify: thing -> colour", "Name the colour.", "{{ thing }}", "A good answer: red", "Be brief."):
        assert part in question


def test_only_plain_slots_of_the_programs_own_modules_are_rewritten(bench: Any) -> None:
    assert places(bench.program()) == {Place("classify", "instruction"): "Name the colour."}
    clever = bench.program(
        template="{% user %}{% slot a %}{{ thing }}{% endslot %}{% slot instruction %}x{% endslot %}{% enduser %}"
    )
    assert list(places(clever)) == [Place("classify", "instruction")]


def quality(messages: Sequence[Message]) -> float:
    """Better with every 'good' in the prompt."""
    return min(0.95, 0.35 + 0.2 * messages[0].content.count("good"))


def improving(number: int, messages: Sequence[Message]) -> str:
    """One 'good' more than the text it was shown, as a reflecting model would."""
    now = re.search(r"now reads:\n\n(.*?)\n\n", messages[-1].content, re.DOTALL)
    assert now is not None
    return now[1].strip() + f" Be good {number}."


def test_mipro_finds_the_proposed_instruction_and_resumes(bench: Any, scripted: Any) -> None:
    texts = ["Do it badly.", "Be good, good and good.", "Say something.", "Well."]
    block = MiproSearch(
        algorithm="mipro", proposer="writer", demos=0, trials=12, minibatch=24, full_every=4, examples=128, bootstrap=2
    )
    results = []
    for _ in range(2):
        engine, writer = scripted(quality), Writer(lambda n, messages: texts[n])
        job = bench.job(bench.program(), engine, config=block)
        job.engines["writer"] = writer
        results.append(search(job))
        if len(results) == 1:
            assert len(writer.asked) == 4 and len({r.messages[-1].content for r in writer.asked}) == 4, "tips differ"
    assert results[0].replaced and "good, good and good" in results[0].program.templates["classify"].source
    assert len(results[0].best_scores) == 128, "the verdict rests on a full evaluation"
    assert not engine.requests and not writer.asked, "a second search reads everything from the journal"
    assert results[0].note == results[1].note and results[0].trials == results[1].trials


def test_mipro_without_a_proposer_says_so_and_searches_the_rest(bench: Any, scripted: Any) -> None:
    block = MiproSearch(algorithm="mipro", demos=0, trials=6, minibatch=16, examples=96, bootstrap=1)
    program = bench.program(["Be good, good and good."])
    result = search(bench.job(program, scripted(quality), config=block))
    assert result.replaced and "names no `proposer`" in result.note


def test_a_proposer_that_writes_nothing_of_use_is_told_of(bench: Any, scripted: Any) -> None:
    block = MiproSearch(algorithm="mipro", proposer="writer", demos=0, trials=4, examples=64, proposals=1, bootstrap=1)
    job = bench.job(bench.program(["Be good, good and good."]), scripted(quality), config=block)
    job.engines["writer"] = Writer(lambda n, messages: "")
    result = search(job)
    assert result.replaced and "writer wrote nothing that can be used for classify.instruction" in result.note
    assert [t.rejected for t in result.trials if t.rejected] == ["it is empty"] * 3


def test_gepa_evolves_texts_and_resumes(bench: Any, scripted: Any) -> None:
    block = GepaSearch(algorithm="gepa", proposer="writer", demos=0, runs=700, minibatch=8, examples=96, bootstrap=1)
    results = []
    for _ in range(2):
        engine, writer = scripted(quality), Writer(improving)
        job = bench.job(bench.program(), engine, config=block)
        job.engines["writer"] = writer
        results.append(search(job))
    first = results[0]
    assert first.replaced and first.program.templates["classify"].source.count("Be good") >= 2, first.note
    assert len(first.best_scores) == 96 and sum(first.best_scores) > sum(first.start_scores)
    assert not engine.requests and not writer.asked, "a second search reads everything from the journal"
    assert results[1].note == first.note and results[1].trials == first.trials


def test_a_proposer_that_breaks_ends_the_search_loudly(bench: Any, scripted: Any) -> None:
    def broken(number: int, messages: Sequence[Message]) -> str:
        raise EnvironmentProblem("the key was refused")

    for algorithm in ("gepa", "mipro"):
        block = {"gepa": GepaSearch, "mipro": MiproSearch}[algorithm](
            algorithm=algorithm, proposer="writer", examples=16
        )
        job = bench.job(bench.program(), scripted(quality), algorithm, config=block)
        job.engines["writer"] = Writer(broken)
        with pytest.raises(EnvironmentProblem, match="the key was refused"):
            search(job)


def test_a_program_that_breaks_ends_the_evolution_loudly(bench: Any, scripted: Any) -> None:
    engine = scripted(quality)
    real = engine.complete

    async def refused(request: Request) -> Completion:
        if len(engine.requests) >= 20:
            raise EnvironmentProblem("the key was refused")
        return await real(request)  # type: ignore[no-any-return]

    engine.complete = refused
    block = GepaSearch(algorithm="gepa", proposer="writer", demos=0, runs=300, minibatch=4, examples=16, bootstrap=1)
    job = bench.job(bench.program(), engine, config=block)
    job.engines["writer"] = Writer(improving)
    with pytest.raises(EnvironmentProblem, match="the key was refused"):
        search(job)


def test_a_reflection_never_shows_an_example_of_test(bench: Any, scripted: Any, make_examples: Any) -> None:
    test = make_examples("test", 32)
    block = GepaSearch(algorithm="gepa", proposer="writer", demos=0, runs=200, minibatch=4, examples=16, bootstrap=1)
    train = [*make_examples("train", 6), *test]
    job = bench.job(bench.program(), scripted(lambda m: 0.3), train=train, held_out=test, config=block)
    job.engines["writer"] = writer = Writer(improving)
    search(job)
    shown = {found for r in writer.asked for found in re.findall(r"thing: (\w+) thing", r.messages[-1].content)}
    assert shown == {"train"}


def test_gepa_shows_the_proposer_what_went_wrong(bench: Any, scripted: Any) -> None:
    block = GepaSearch(algorithm="gepa", proposer="writer", demos=0, runs=120, minibatch=4, examples=32, bootstrap=1)
    writer = Writer(improving)
    job = bench.job(bench.program(), scripted(quality), config=block)
    job.engines["writer"] = writer
    search(job)
    question = writer.asked[0].messages[-1].content
    assert "Case 1:" in question and "The run scored" in question and '"gold"' in question and "Answer: " in question


@pytest.mark.parametrize(
    ("budget", "said"),
    [
        ({"calls": 40}, "of 40 calls"),
        ({"tokens": 500}, "of 500 tokens"),
        ({"dollars": 1.0}, "of $1.00"),
        ({"minutes": 1e-9}, "minutes"),
    ],
)
def test_a_budget_ends_the_search_with_a_verdict_on_what_there_is(
    bench: Any, scripted: Any, budget: dict[str, Any], said: str
) -> None:
    block = MiproSearch(
        algorithm="mipro",
        proposer="writer",
        demos=0,
        trials=50,
        examples=24,
        minibatch=8,
        bootstrap=1,
        budget=Budget(**budget),
    )
    engine = scripted(quality)
    job = bench.job(bench.program(), engine, config=block)
    job.engines["writer"] = Writer(lambda n, messages: f"Be good {n}.")
    result = search(job)
    assert "the budget is spent" in result.note and said in result.note
    assert len(engine.requests) < 24 + 4 * 8


def test_an_unknown_price_is_not_nothing(bench: Any, scripted: Any) -> None:
    done = [Completion("", "stop", metadata={"cost": 0.25}), Completion("", "stop", metadata={"cost": None})]
    assert usage_of(done)["dollars"] is None and usage_of(done[:1])["dollars"] == 0.25
    assert usage_of([Completion("", "stop")])["dollars"] == 0.0, "a local model"
    ledger = Ledger(Budget(dollars=1.0))
    with pytest.raises(Exception, match="the price of a model is not known"):
        ledger.add(usage_of(done))


def test_bootstrap_changes_demonstrations_alone(bench: Any, scripted: Any, make_examples: Any) -> None:
    def shown(messages: Sequence[Message]) -> float:
        return 0.5 + 0.11 * sum(m.role == "assistant" for m in messages)

    block = BootstrapSearch(algorithm="bootstrap", trials=6, demos=4, examples=128, bootstrap=32)
    program = bench.program(["Another instruction."])
    result = search(bench.job(program, scripted(shown), config=block))
    assert result.replaced
    after = result.program.templates["classify"]
    assert after.source.count("{% assistant %}") == 4
    assert after.with_slot("demos", "").source == program.templates["classify"].source
    assert all("instruction" not in trial.what for trial in result.trials)


def test_a_training_example_that_is_in_test_is_never_shown(bench: Any, scripted: Any, make_examples: Any) -> None:
    test = make_examples("test", 32)
    train = [*make_examples("train", 4), *test]
    engine = scripted(lambda m: 0.9)
    search(bench.job(bench.program(), engine, train=train, held_out=test, config={"demos": 4, "bootstrap": 36}))
    asked = {m.content for r in engine.requests for m in r.messages[:-1] if m.role == "user"}
    assert asked and asked <= {f"Thing: train thing {i}" for i in range(4)}
