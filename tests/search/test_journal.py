from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mmc.errors import InvalidError
from mmc.search import search
from mmc.search.journal import Journal, identity_of


def never() -> Any:
    raise AssertionError("finished work was done again")


def test_finished_work_is_remembered(tmp_path: Path) -> None:
    path = tmp_path / "new" / "journal.jsonl"
    first = Journal(path, {"a": 1})
    assert ["x", 1] not in first
    assert first.once(["x", 1], lambda: (0.1, 1 / 3)) == [0.1, 1 / 3]
    assert first.once(["x", 1], never) == [0.1, 1 / 3]
    again = Journal(path, {"a": 1})
    assert ["x", 1] in again
    assert again.once(["x", 1], never) == [0.1, 1 / 3]
    assert again.once(["x", 2], lambda: "é") == "é"
    assert len(path.read_text().splitlines()) == 3


def test_work_that_fails_is_not_remembered(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl", {})
    with pytest.raises(AssertionError):
        journal.once(["x"], never)
    assert journal.once(["x"], lambda: 5) == 5


@pytest.mark.parametrize("torn", [b'{"key":["b"],"val', b'{"key":["b"],"value":2}', b"\x00\x00\x00\n"])
def test_a_torn_last_line_is_dropped(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "journal.jsonl"
    Journal(path, {}).once(["a"], lambda: 1)
    whole = path.read_bytes()
    path.write_bytes(whole + torn)
    journal = Journal(path, {})
    assert path.read_bytes() == whole
    assert journal.once(["a"], never) == 1
    assert journal.once(["b"], lambda: 3) == 3
    assert Journal(path, {}).once(["b"], never) == 3


def test_a_torn_first_line_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_bytes(b'{"journal":1,"ident')
    Journal(path, {"a": 1}).once(["a"], lambda: 1)
    assert Journal(path, {"a": 1}).once(["a"], never) == 1


def test_a_broken_line_in_the_middle_is_an_error_with_its_number(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    journal = Journal(path, {})
    journal.once(["a"], lambda: 1)
    journal.once(["b"], lambda: 1)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + b"{broken\n" + lines[2])
    with pytest.raises(InvalidError, match=r"journal.jsonl:2: error: this line of the journal cannot be read"):
        Journal(path, {})


def test_another_searchs_journal_is_refused_naming_what_changed(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    Journal(path, {"compile.seed": 0, "data.dev": "sha256:a", "modules.old": "sha256:b", "same": None})
    before = path.read_bytes()
    with pytest.raises(InvalidError) as caught:
        Journal(path, {"compile.seed": 1, "data.dev": "sha256:c", "same": None, "tools.new": "sha256:d"})
    message = caught.value.diagnostics[0].message
    assert message.endswith("changed since: compile.seed (0 -> 1), data.dev, modules.old (gone), tools.new (new)")
    assert path.read_bytes() == before


def test_a_file_that_is_no_journal_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_text(json.dumps({"journal": 99, "identity": {}}) + "\n")
    with pytest.raises(InvalidError, match="this version can resume"):
        Journal(path, {})


def changed_parts(job: Any, other: Any) -> set[str]:
    a, b = identity_of(job), identity_of(other)
    return {name for name in a.keys() | b.keys() if a.get(name) != b.get(name)}


def test_the_identity_covers_everything_a_search_depends_on(bench: Any, scripted: Any, make_examples: Any) -> None:
    engine = scripted(lambda m: 0.5)
    program = bench.program(["One."])
    job = bench.job(program, engine)
    assert changed_parts(job, bench.job(bench.program(["One."]), engine, "elsewhere")) == set()
    assert changed_parts(job, replace(job, seed=1)) == {"compile.seed"}
    assert changed_parts(job, replace(job, dev=job.dev[:-1])) == {"data.dev"}
    assert changed_parts(job, replace(job, train=make_examples("other", 3))) == {"data.train"}
    assert changed_parts(job, bench.job(program, engine, config={"trials": 7})) == {"compile.prompts.trials"}
    assert changed_parts(job, replace(job, program=program.with_adapters({"classify": "x"}))) == {"adapters.classify"}
    edited = program.templates["classify"].with_slot("instruction", "Two.")
    edited_job = replace(job, program=program.with_templates({"classify": edited}))
    assert changed_parts(job, edited_job) == {"modules.classify.template (its text)"}
    metric = bench.spec.replace("gold: gold}", "gold: gold, normalize: false}")
    assert changed_parts(job, bench.job(bench.program(["One."], spec=metric), engine)) == {"metric"}
    assert changed_parts(job, bench.job(bench.program(["Two."]), engine)) == {"modules.classify"}


def test_a_search_refuses_the_journal_of_another(bench: Any, scripted: Any) -> None:
    engine = scripted(lambda m: 0.5)
    program = bench.program(["One."])
    search(bench.job(program, engine))
    asked = len(engine.requests)
    changes = "changed since: compile.prompts.trials (6 -> 7), compile.seed (0 -> 3)"
    with pytest.raises(InvalidError, match=re.escape(changes)):
        search(bench.job(program, engine, seed=3, config={"trials": 7}))
    assert len(engine.requests) == asked
