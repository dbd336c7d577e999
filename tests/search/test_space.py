from __future__ import annotations

from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

from mmc.prompt.slots import find_slots
from mmc.search.demos import Demo, Found
from mmc.search.space import Candidate, Refusal, Space, make_space

TEXTS = ["Say it.", "Be quick.", "Guess."]
USER = "{% user %}\n{{ thing }}\n{% enduser %}\n"
OTHER = "{% slot instruction %}\n{% system %}\nOther.\n{% endsystem %}\n{% endslot %}\n" + USER


def found(count: int = 8) -> Found:
    demos = [Demo("classify", "labelled", str(i), {"thing": f"thing {i} {{{{"}, "red") for i in range(count)]
    return Found(tuple(demos), {"classify": {"thing": "a sample"}})


def space_of(bench: Any, texts: list[str] | None = None, demos: int = 4, **files: str) -> Space:
    program = bench.program(TEXTS if texts is None else texts, **files)
    return make_space(program, found(), demos, 0)[0]


def outside(source: str) -> list[str]:
    """The pieces of a template's source that stand outside its slots."""
    pieces, position = [], 0
    for slot in find_slots(source):
        pieces.append(source[position : slot.start])
        position = slot.end
    return [*pieces, source[position:]]


def test_draws_are_all_different_complete_and_never_the_start(bench: Any) -> None:
    space = space_of(bench, short=USER)
    for seed in range(5):
        drawn = list(space.draw(seed))
        assert len(drawn) == len(set(drawn)) == space.size - 1
        assert space.start not in drawn
        assert drawn == list(space.draw(seed))
    assert list(space.draw(0))[:5] != list(space.draw(1))[:5]


def test_few_draws_see_every_option_about_equally_often(bench: Any) -> None:
    space = space_of(bench)
    sizes = {slot: len(options) for slot, options in space.variants["classify"][0].slots.items()}
    assert sizes == {"instruction": 4, "demos": 7}
    for seed in range(10):
        drawn: list[Candidate] = [space.start, *islice(space.draw(seed), 12)]
        for slot, size in sizes.items():
            counts = Counter(dict(candidate.picks[0].options)[slot] for candidate in drawn)
            assert len(counts) == size
            assert max(counts.values()) - min(counts.values()) <= 2


def test_every_candidate_leaves_what_stands_outside_slots_as_it_is(bench: Any) -> None:
    space = space_of(bench)
    before = space.program.templates["classify"]
    sources = set()
    for candidate in space.draw(0):
        made = space.build(candidate)
        assert not isinstance(made, Refusal)
        after = made.templates["classify"]
        assert outside(after.source) == outside(before.source)
        assert after.variables == before.variables
        sources.add(after.source)
    assert len(sources) == space.size - 1


def test_the_start_changes_nothing_and_says_so(bench: Any) -> None:
    space = space_of(bench)
    made = space.build(space.start)
    assert not isinstance(made, Refusal)
    assert made.templates == space.program.templates
    assert space.describe(space.start) == "the start"


def test_a_candidate_is_described_by_what_it_changes(bench: Any) -> None:
    space = space_of(bench, ["Say it. " * 20], short=USER)
    words = {space.describe(candidate) for candidate in space.draw(0)}
    assert "classify: template short.j2" in words
    assert any("4 demonstrations (set 1)" in w for w in words)
    assert any(w.endswith("(set 5)") and "1 demonstration (" in w for w in words)
    assert max(map(len, words)) < 140


def test_demonstrations_render_as_text_whatever_they_hold(bench: Any) -> None:
    space = space_of(bench, [])
    for candidate in space.draw(0):
        made = space.build(candidate)
        assert not isinstance(made, Refusal)
        variables = made.prompt_variables("classify", {"thing": "now"})
        messages = made.templates["classify"].render(variables)
        assert [m.role for m in messages[1:]] == ["user", "assistant"] * ((len(messages) - 2) // 2) + ["user"]
        assert all(m.content.endswith(" {{") and m.content.startswith("Thing: thing ") for m in messages[1:-1:2])
        assert messages[-1].content == "Thing: now"


def test_demonstrations_of_a_program_that_has_some_can_be_taken_out(bench: Any) -> None:
    program = bench.program(TEXTS)
    shown = program.templates["classify"].with_slot("demos", "{% user %}\nThing: a\n{% enduser %}")
    space, refused = make_space(program.with_templates({"classify": shown}), found(), 2, 0)
    assert refused == ()
    whats = [option.what for option in space.variants["classify"][0].slots["demos"]]
    assert whats[:2] == ["demos as it is", "no demonstrations"]
    without = next(c for c in space.draw(0) if space.describe(c) == "classify: no demonstrations")
    made = space.build(without)
    assert not isinstance(made, Refusal)
    assert made.templates["classify"].source == program.templates["classify"].source


def test_a_text_that_already_stands_there_or_comes_twice_is_no_new_option(bench: Any) -> None:
    space = space_of(bench, ["Name the colour.", " Say it.", "Say it."], demos=0)
    assert [o.text for o in space.variants["classify"][0].slots["instruction"]] == [None, " Say it."]


def test_an_option_that_breaks_the_template_is_refused_by_itself(bench: Any) -> None:
    program = bench.program(TEXTS, other=OTHER)
    space, refused = make_space(program, found(), 0, 0)
    assert len(space.variants["classify"]) == 2
    assert [r.what for r in refused] == [f"classify: instruction {text!r}" for text in TEXTS]
    assert all("text outside" in r.reason for r in refused)


def test_a_template_that_its_sample_cannot_be_rendered_with_is_refused(bench: Any, tmp_path: Path) -> None:
    program = bench.program([], bad="{% user %}\n{{ thing.colour }}\n{% enduser %}\n")
    space, refused = make_space(program, found(), 0, 0)
    assert space.size == 1
    assert refused[0].what == "classify: template bad.j2" and "colour" in refused[0].reason


def test_a_module_that_was_never_reached_is_checked_without_a_sample(bench: Any) -> None:
    space, refused = make_space(bench.program(TEXTS), Found((), {}), 4, 0)
    assert space.size == 4 and refused == ()
