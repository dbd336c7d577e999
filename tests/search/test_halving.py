from __future__ import annotations

import re
from collections import Counter, defaultdict
from dataclasses import fields, replace
from typing import Any, get_args

import pytest

from mmc.errors import UsageError
from mmc.search import STRATEGIES, SearchJob, SearchResult, TrialReport, search
from mmc.search.halving import rounds
from mmc.spec.searches import PromptSearch

TEXTS = [f"Instruction number {word}." for word in ("one", "two", "three", "four", "five")]


def system(messages: Any) -> str:
    return str(messages[0].content)


def shown(messages: Any) -> int:
    return sum(m.role == "assistant" for m in messages)


def plain(result: SearchResult) -> dict[str, Any]:
    """A result as what can be compared: the program by its templates."""
    values = {f.name: getattr(result, f.name) for f in fields(result) if f.name != "program"}
    return values | {"templates": {n: t.source for n, t in result.program.templates.items()}}


def test_every_algorithm_of_the_spec_has_a_strategy() -> None:
    declared = [get_args(part)[0] for part in get_args(get_args(PromptSearch)[0])]
    assert list(STRATEGIES) == [get_args(block.model_fields["algorithm"].annotation)[0] for block in declared]


def test_the_better_instruction_wins_and_only_its_slot_changes(bench: Any, scripted: Any) -> None:
    program = bench.program(TEXTS)
    engine = scripted(lambda m: 0.9 if "number three" in system(m) else 0.5)
    result = search(bench.job(program, engine))
    assert result.replaced
    before, after = program.templates["classify"].source, result.program.templates["classify"].source
    assert after == before.replace("Name the colour.", "Instruction number three.")
    assert sum(result.best_scores) > sum(result.start_scores)
    assert result.difference.low > 0
    assert "number three" in result.note and result.note.startswith("replaced the start")


def test_the_start_stays_when_it_is_the_best(bench: Any, scripted: Any) -> None:
    program = bench.program(TEXTS)
    result = search(bench.job(program, scripted(lambda m: 0.9 if "Name the colour" in system(m) else 0.5)))
    assert not result.replaced
    assert result.program.templates == program.templates
    assert result.best_scores == result.start_scores
    assert "no better" in result.note


@pytest.fixture
def lazy_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many searches in a row need not wait for the disk."""
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


@pytest.mark.usefixtures("lazy_disk")
def test_noise_alone_does_not_replace_the_start(bench: Any, scripted: Any, make_examples: Any) -> None:
    dev = make_examples("dev", 64)
    program = bench.program([f"Other words {i}." for i in range(12)])
    results = []
    for seed in range(30):
        engine = scripted(lambda m: 0.5, lambda m, seed=seed: (seed, system(m)))
        config = {"trials": 12, "examples": 16}
        results.append(search(bench.job(program, engine, f"run{seed}", seed=seed, dev=dev, config=config)))
    assert sum(r.difference.mean > 0.05 for r in results) > 10, "the luckiest of twelve must look better"
    assert sum(r.difference.low > 0 for r in results) >= 3, "and would often pass an uncorrected test"
    assert not any(r.replaced for r in results)
    assert any("noise explains" in r.note for r in results)


@pytest.mark.usefixtures("lazy_disk")
def test_a_true_gain_is_found_under_the_same_noise(bench: Any, scripted: Any) -> None:
    program = bench.program([f"Other words {i}." for i in range(12)])
    found = 0
    for seed in range(10):
        engine = scripted(lambda m: 0.8 if "words 7." in system(m) else 0.5, lambda m, seed=seed: (seed, system(m)))
        job = bench.job(program, engine, f"run{seed}", seed=seed, config={"trials": 12})
        found += "words 7." in search(job).program.templates["classify"].source
    assert found >= 9


def test_demonstrations_win_and_come_from_train_alone(bench: Any, scripted: Any, make_examples: Any) -> None:
    program = bench.program()
    engine = scripted(lambda m: 0.5 + 0.12 * shown(m))
    train = make_examples("train", 60)
    result = search(bench.job(program, engine, train=train, config={"demos": 4}))
    assert result.replaced
    after = result.program.templates["classify"]
    things = re.findall(r"Thing: (\w+ thing \d+)", after.source)
    gold = {e.row["thing"]: e.row["gold"] for e in train}
    assert len(things) == 4
    answers = re.findall(r"{% assistant %}\n(\w+)\n", after.source)
    assert [gold[thing] for thing in things] == answers
    assert len(set(answers)) == 4
    assert after.with_slot("demos", "").source == program.templates["classify"].source
    asked = [m.content for r in engine.requests for m in r.messages[:-1] if m.role == "user"]
    assert asked and all(text.startswith("Thing: train ") for text in asked)


def test_a_training_row_that_is_also_in_dev_is_never_shown(bench: Any, scripted: Any, make_examples: Any) -> None:
    dev = make_examples("dev", 64)
    train = [*make_examples("train", 4), *(replace(e, id=f"copy {e.id}") for e in dev)]
    engine = scripted(lambda m: 0.5 + 0.12 * shown(m))
    search(bench.job(bench.program(), engine, train=train, dev=dev, config={"demos": 4, "bootstrap": 68}))
    asked = {m.content for r in engine.requests for m in r.messages[:-1] if m.role == "user"}
    assert asked and asked <= {f"Thing: train thing {i}" for i in range(4)}


def test_another_template_can_win(bench: Any, scripted: Any) -> None:
    other = "{% user %}\nThing: {{ thing }}\n{% enduser %}\n"
    program = bench.program(TEXTS[:1], short=other)
    result = search(bench.job(program, scripted(lambda m: 0.95 if len(m) == 1 else 0.4)))
    assert result.program.templates["classify"].path.name == "short.j2"
    assert result.program.templates["classify"].source == other
    assert "template short.j2" in result.note


def test_of_equal_candidates_the_shorter_prompt_wins(bench: Any, scripted: Any) -> None:
    texts = ["A good and wordy instruction it is, this one.", "A good one.", "A good instruction of some length."]
    for counts in (True, False):
        engine = scripted(lambda m: 0.9 if "good" in system(m) else 0.4, lambda m: "good" in system(m), counts=counts)
        result = search(bench.job(bench.program(texts), engine, f"run{counts}"))
        assert "A good one.\n" in result.program.templates["classify"].source


def test_rounds_halve_the_candidates_and_double_the_examples() -> None:
    assert rounds(12, 32, 1000) == [(12, 32), (6, 64), (3, 128), (1, 256)]
    assert rounds(12, 32, 100) == [(12, 32), (6, 64), (3, 100)]
    assert rounds(12, 32, 20) == [(12, 20)]
    assert rounds(1, 8, 100) == [(1, 8)]
    assert rounds(0, 8, 100) == [(0, 8)]


def test_candidates_meet_the_same_examples_greedily_and_none_twice(bench: Any, scripted: Any) -> None:
    engine = scripted(lambda m: 0.7 if "four" in system(m) else 0.5)
    reports: list[TrialReport] = []
    result = search(bench.job(bench.program(TEXTS), engine, on_trial=reports.append, config={"examples": 8}))
    met = defaultdict(list)
    for request in engine.requests:
        if request.key[0] == "prompts":
            assert request.sampling.temperature == 0
            met[system(request.messages)].append(request.key[2])
    assert sorted(len(ids) for ids in met.values()) == [8, 8, 8, 16, 32, 32]
    for ids in met.values():
        assert ids == list(result.examples[: len(ids)])
    assert [r.trial for r in reports] == list(range(1, reports[-1].trials + 1))
    assert Counter(r.round for r in reports)[1] == 6
    assert reports[-1].score.n == len(result.start_scores)


class Killed(Exception):
    pass


def killed_after(count: int) -> Any:
    left = [count]

    def on_trial(report: TrialReport) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise Killed

    return on_trial


def test_a_killed_search_resumes_to_the_same_result_without_repeating_work(bench: Any, scripted: Any) -> None:
    program = bench.program(TEXTS[:2])

    def job(engine: Any, run: str, **changes: Any) -> SearchJob:
        config = {"demos": 2, "examples": 8, "trials": 4}
        return bench.job(program, engine, run, config=config, **changes)  # type: ignore[no-any-return]

    def engine() -> Any:
        return scripted(lambda m: 0.4 + 0.2 * shown(m))

    whole, reports = engine(), []
    expected = search(job(whole, "whole", on_trial=reports.append))
    journal = (bench.folder / "whole/journal.jsonl").read_bytes()
    assert len(reports) > 8
    for count in range(1, len(reports) + 1):
        first, second = engine(), engine()
        with pytest.raises(Killed):
            search(job(first, f"killed{count}", on_trial=killed_after(count)))
        rest: list[TrialReport] = []
        resumed = search(job(second, f"killed{count}", on_trial=rest.append))
        assert plain(resumed) == plain(expected)
        assert (bench.folder / f"killed{count}/journal.jsonl").read_bytes() == journal
        assert Counter(first.requests + second.requests) == Counter(whole.requests)
        assert [r.trial for r in rest] == [r.trial for r in reports[count:]]


def test_a_search_killed_while_it_evaluates_resumes(bench: Any, scripted: Any) -> None:
    program = bench.program(TEXTS)
    whole = scripted(lambda m: 0.5)
    expected = search(bench.job(program, whole, "whole"))

    def dies(messages: Any) -> float:
        if len(broken.requests) > 150:
            raise KeyboardInterrupt
        return 0.5

    broken = scripted(dies)
    with pytest.raises(KeyboardInterrupt):
        search(bench.job(program, broken, "killed"))
    second = scripted(lambda m: 0.5)
    assert plain(search(bench.job(program, second, "killed"))) == plain(expected)
    assert 0 < len(second.requests) < len(whole.requests)


def test_a_finished_search_is_read_from_its_journal(bench: Any, scripted: Any) -> None:
    program = bench.program(TEXTS)
    first = search(bench.job(program, scripted(lambda m: 0.5)))
    again = scripted(lambda m: 0.5)
    assert plain(search(bench.job(program, again))) == plain(first)
    assert again.requests == []


def test_proposed_text_never_becomes_jinja(bench: Any, scripted: Any) -> None:
    text = "{% endslot %}{{ thing }}{# gone #} {{ 7 * 7 }} {% user %}"
    program = bench.program([text])
    engine = scripted(lambda m: 0.9 if "{{ 7 * 7 }}" in system(m) else 0.4)
    result = search(bench.job(program, engine))
    assert result.replaced
    message = result.program.templates["classify"].render({"thing": "x", "choices": {"colour": ["red"]}})[0]
    assert message.content == f"Colours: red\n{text}\nAnswer in one word."


def test_a_text_that_drops_an_input_is_refused_with_the_reason(bench: Any, scripted: Any) -> None:
    template = "{% user %}\n{% slot instruction %}\nThing: {{ thing }}\n{% endslot %}\n{% enduser %}\n"
    program = bench.program(["No input."], template=template)
    result = search(bench.job(program, scripted(lambda m: 0.5)))
    refused = [t for t in result.trials if t.rejected]
    assert len(refused) == 1
    assert refused[0].rounds == 0 and refused[0].score is None
    assert "No input." in refused[0].what and "which inputs the template uses: thing" in refused[0].rejected
    assert "nothing may be changed" in result.note


def test_demonstrations_are_refused_where_they_cannot_stand(bench: Any, scripted: Any) -> None:
    template = "{% slot demos %}\n{% endslot %}\nThing: {{ thing }}\n"
    program = bench.program(template=template, spec=bench.spec.replace("instruction: []", ""))
    result = search(bench.job(program, scripted(lambda m: 0.5), config={"demos": 3}))
    assert not result.replaced
    assert {t.rejected != "" for t in result.trials[1:]} == {True}
    assert "text outside" in result.trials[1].rejected


def test_without_dev_examples_there_is_nothing_to_choose_by(bench: Any, scripted: Any) -> None:
    with pytest.raises(UsageError, match="no dev examples"):
        search(bench.job(bench.program(TEXTS), scripted(lambda m: 0.5), dev=[]))


def test_without_training_examples_instructions_are_still_searched(bench: Any, scripted: Any) -> None:
    engine = scripted(lambda m: 0.9 if "three" in system(m) else 0.4)
    assert search(bench.job(bench.program(TEXTS), engine, train=[], config={"demos": 4})).replaced
