from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmc.data import Example
from mmc.engine.base import Completion, Message, Request
from mmc.program.graph import Program
from mmc.program.run import RunSettings, run_all
from mmc.search import SearchJob
from mmc.search.demos import Demo, bootstrapped, demo_sets, find_demos, labelled
from mmc.search.journal import Journal
from mmc.search.ledger import Ledger
from mmc.spec.load import load
from mmc.spec.model import HalvingSearch
from mmc.spec.searches import Budget

SPEC = """\
mmc: 1
name: capitals
models:
  policy: {type: local, source: "path:nowhere"}
modules:
  think:
    model: policy
    template: think.j2
    inputs: {country: str}
    outputs: {thought: str}
  answer:
    model: policy
    template: answer.j2
    inputs: {country: str, thought: str}
    outputs: {capital: OUTPUT}
    format: FORMAT
program:
  inputs: {country: str}
  steps:
    - call: think
    - call: answer
      with: {thought: "{{ think.thought }}"}
      as: last
  outputs: {capital: "{{ last.capital }}"}
metric: METRIC
"""
EXACT = "{type: exact, predicted: capital, gold: gold}"
THINK = "{% slot demos %}\n{% endslot %}\n{% user %}\nThink of {{ country }}\n{% enduser %}\n"
ANSWER = "{% slot demos %}\n{% endslot %}\n{% user %}\n{{ thought }} {{ country }}?\n{% enduser %}\n"
GOLD = {"France": "Paris", "Peru": "Lima", "Chad": "N'Djamena", "Mali": "Bamako"}


class Fixed:
    """Answers a prompt as a table says; what is not in it with 'unknown'."""

    def __init__(self, answers: Mapping[str, str]) -> None:
        self.answers = answers
        self.temperatures: list[tuple[str, float]] = []

    async def complete(self, request: Request) -> Completion:
        text = request.messages[-1].content
        self.temperatures.append((text, request.sampling.temperature))
        return Completion(self.answers.get(text, "unknown"), "stop")

    width = None

    @contextmanager
    def client(self) -> Iterator[None]:
        yield

    keeping = client

    def count_tokens(self, messages: Sequence[Message]) -> int:
        return 0

    def close(self) -> None:
        pass


THOUGHTS = {f"Think of {country}": f"Hm, {country}." for country in GOLD}
RIGHT = {"Hm, France. France?": "Paris", "Hm, Peru. Peru?": "Lima"}


def make(folder: Path, output: str = "str", form: str = "auto", metric: str = EXACT, spec: str = SPEC) -> Program:
    (folder / "think.j2").write_text(THINK)
    (folder / "answer.j2").write_text(ANSWER)
    text = spec.replace("OUTPUT", output).replace("FORMAT", form).replace("METRIC", metric)
    (folder / "spec.yaml").write_text(text)
    return Program.build(load(folder / "spec.yaml"))


def rows(gold: Mapping[str, Any]) -> list[Example]:
    return [Example(name, {"country": name, "gold": value}) for name, value in gold.items()]


def label(program: Program, engine: Fixed, gold: Mapping[str, Any]) -> dict[str, str]:
    """Labelled demonstrations, by example."""
    examples = rows(gold)
    runs = run_all(program, {"policy": engine}, examples, RunSettings("demos", 0, 0, 0.0))
    found = labelled(program, runs, {e.id: e.row for e in examples})
    assert all(d.kind == "labelled" and d.module == "answer" for d in found)
    return {d.example: d.answer for d in found}


def test_bootstrapped_demonstrations_are_the_calls_of_every_module_in_good_runs(tmp_path: Path) -> None:
    program = make(tmp_path)
    runs = run_all(program, {"policy": Fixed(THOUGHTS | RIGHT)}, rows(GOLD), RunSettings("demos", 0, 0, 0.0))
    found = bootstrapped(program, runs, 4)
    assert [(d.module, d.example, d.answer) for d in found] == [
        ("think", "France", "Hm, France."),
        ("answer", "France", "Paris"),
        ("think", "Peru", "Hm, Peru."),
        ("answer", "Peru", "Lima"),
    ]
    assert found[1].inputs == {"country": "France", "thought": "Hm, France."}


def test_where_no_run_is_perfect_the_best_ones_are_shown(tmp_path: Path) -> None:
    program = make(tmp_path, metric="{type: f1, predicted: capital, gold: gold}")
    answers = THOUGHTS | {"Hm, France. France?": "Paris of course", "Hm, Peru. Peru?": "Lima it is I think"}
    runs = run_all(program, {"policy": Fixed(answers)}, rows(GOLD), RunSettings("demos", 0, 0, 0.0))
    assert 0 < runs[1].reward < runs[0].reward < 1
    assert {d.example for d in bootstrapped(program, runs, 4)} == {"France", "Peru"}
    assert bootstrapped(program, runs[2:], 4) == []


def test_labelled_demonstrations_answer_with_the_gold_value(tmp_path: Path) -> None:
    assert label(make(tmp_path), Fixed(THOUGHTS), GOLD) == GOLD


def test_a_gold_value_takes_the_spelling_of_its_option_and_is_left_out_when_it_is_none(tmp_path: Path) -> None:
    program = make(tmp_path, "{enum: [Paris, Lima, unknown]}")
    assert label(program, Fixed(THOUGHTS), GOLD | {"France": " paris "}) == {"France": "Paris", "Peru": "Lima"}


def test_a_gold_list_is_an_answer_only_where_a_list_is_asked_for(tmp_path: Path) -> None:
    recall = "{type: recall, predicted: capital, gold: gold}"
    gold = {"France": ["Paris", "Île"], "Peru": None}
    program = make(tmp_path, '"list[str]"', metric=recall)
    answers = dict.fromkeys(("Hm, France. France?", "Hm, Peru. Peru?"), '{"capital": []}')
    assert label(program, Fixed(THOUGHTS | answers), gold) == {"France": '{"capital": ["Paris", "Île"]}'}
    assert label(make(tmp_path, "str", metric=recall), Fixed(THOUGHTS), gold) == {}
    assert label(make(tmp_path, "str", "json", metric=recall), Fixed(THOUGHTS | answers), gold) == {}


def test_a_comparison_inside_a_weighted_metric_counts_a_penalty_does_not(tmp_path: Path) -> None:
    weighted = "{{type: weighted, of: [{{name: a, weight: {}, metric: {}}}]}}"
    assert label(make(tmp_path, metric=weighted.format(1.0, EXACT)), Fixed(THOUGHTS), GOLD) == GOLD
    assert label(make(tmp_path, metric=weighted.format(-1.0, EXACT)), Fixed(THOUGHTS), GOLD) == {}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"{{ last.capital }}"', '"{{ last.capital | upper }}"'),
        ('"{{ last.capital }}"', '"It is {{ last.capital }}"'),
        ("{capital: OUTPUT}", "{capital: OUTPUT, sure: bool}"),
        ("    - call: think\n", "    - call: think\n    - call: think\n      as: last\n"),
    ],
)
def test_no_label_where_the_output_is_not_one_modules_single_answer(tmp_path: Path, old: str, new: str) -> None:
    engine = Fixed(THOUGHTS | {"Hm, France. France?": '{"capital": "Lyon", "sure": true}'})
    assert label(make(tmp_path, spec=SPEC.replace(old, new)), engine, {"France": "Paris"}) == {}


def search_job(program: Program, engine: Fixed, folder: Path, **config: int) -> SearchJob:
    settings = HalvingSearch(**{"demos": 2, "bootstrap": 4} | config)
    return SearchJob(program, {"policy": engine}, rows(GOLD), rows({"Cuba": "Havana"}), settings, 0, folder)


def find(job: SearchJob) -> Any:
    return find_demos(job, Journal(job.folder / "journal.jsonl", {}), Ledger(Budget()))


def test_only_what_the_greedy_run_did_not_solve_is_run_again_warm(tmp_path: Path) -> None:
    engine = Fixed(THOUGHTS | RIGHT)
    found = find(search_job(make(tmp_path), engine, tmp_path / "run"))
    asked = {t: [text for text, temp in engine.temperatures if temp == t] for t in (0.0, 0.7)}
    assert len(asked[0.0]) == 8
    assert {text for text in asked[0.7] if text.startswith("Think")} == {"Think of Chad", "Think of Mali"}
    assert {(d.module, d.kind) for d in found.demos} == {
        ("think", "bootstrapped"),
        ("answer", "bootstrapped"),
        ("answer", "labelled"),
    }
    assert found.samples.keys() == {"think", "answer"}


@pytest.mark.parametrize("config", [{"demos": 0}, {"bootstrap": 0}])
def test_without_demonstrations_one_run_gives_the_samples(tmp_path: Path, config: dict[str, int]) -> None:
    engine = Fixed(THOUGHTS | RIGHT)
    found = find(search_job(make(tmp_path), engine, tmp_path / "run", **config))
    assert found.demos == ()
    assert found.samples.keys() == {"think", "answer"}
    assert len(engine.temperatures) == 2


DEMOS = st.lists(
    st.builds(
        Demo,
        st.just("m"),
        st.sampled_from(["bootstrapped", "labelled"]),
        st.just("id"),
        st.fixed_dictionaries({"x": st.integers(0, 9)}),
        st.sampled_from("abcd"),
    ),
    max_size=20,
)


@given(DEMOS, st.integers(0, 5), st.integers(0, 3))
def test_sets_are_small_different_and_diverse(demos: list[Demo], most: int, seed: int) -> None:
    sets = demo_sets(demos, most, 6, seed)
    assert bool(sets) == bool(demos and most)
    assert sets == demo_sets(list(reversed(demos)), most, 6, seed), "the order they were found in does not matter"
    for chosen in sets:
        inputs = [d.inputs["x"] for d in chosen]
        assert 0 < len(chosen) <= most
        assert len(set(inputs)) == len(inputs)
    contents = [[(d.inputs["x"], d.answer) for d in chosen] for chosen in sets]
    assert all(contents.count(c) == 1 for c in contents)


def test_the_same_demonstrations_in_another_order_are_another_set() -> None:
    demos = [Demo("m", "bootstrapped", str(i), {"x": i}, "ab"[i]) for i in range(2)]
    sets = demo_sets(demos, 2, 6, 0)
    orders = {tuple(d.example for d in chosen) for chosen in sets if len(chosen) == 2}
    assert orders == {("0", "1"), ("1", "0")}


def test_different_answers_come_before_repeated_ones() -> None:
    demos = [Demo("m", "labelled", str(i), {"x": i}, answer) for i, answer in enumerate("aaaaaaaabc")]
    for seed in range(20):
        for chosen in demo_sets(demos, 3, 6, seed):
            assert len({d.answer for d in chosen}) == len(chosen)
