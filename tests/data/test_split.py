from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from mmc.data import Example, fingerprint, load_split
from mmc.errors import InvalidError
from mmc.spec import load

SPEC = """\
mmc: 1
name: d
models: {p: {type: local, source: "path:x"}}
modules: {a: {model: p, template: t.j2, inputs: {}, outputs: {x: str}}}
program: {inputs: {}, steps: [{call: a}], outputs: {x: "{{ a.x }}"}}
data:
  train: TRAIN
  dev: {file: rows.jsonl}
  test: {file: rows.jsonl}
"""


def train(tmp_path: Path, source: str) -> tuple[Example, ...]:
    (tmp_path / "spec.yaml").write_text(SPEC.replace("TRAIN", source))
    return load_split(load(tmp_path / "spec.yaml"), "train")


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    lines = (f'{{"n": {i}, "label": "{"ab"[i % 3 == 0]}"}}' for i in range(30))
    (tmp_path / "rows.jsonl").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_parts_of_one_shuffle_are_disjoint_and_whole(rows: Path) -> None:
    first = train(rows, "{file: rows.jsonl, shuffle: 1, part: [0.0, 0.7]}")
    second = train(rows, "{file: rows.jsonl, shuffle: 1, part: [0.7, 1.0]}")
    assert len(first) == 21 and {e.id for e in first} | {e.id for e in second} == {str(i) for i in range(30)}
    assert not {e.id for e in first} & {e.id for e in second}
    assert [e.row["n"] for e in first] != sorted(e.row["n"] for e in first)


def test_rows_that_agree_in_a_unique_column_stay_out_of_every_other_part(tmp_path: Path) -> None:
    rows = [("a", 1), ("b", 2), ("a", 3), ("c", 3), ("d", 4)]
    (tmp_path / "rows.jsonl").write_text("".join(f'{{"text": "{t}", "talk": {k}}}\n' for t, k in rows))

    def ids(source: str) -> list[str]:
        return [e.id for e in train(tmp_path, f"{{file: rows.jsonl, {source}}}")]

    assert ids("unique: [text]") == ["0", "1", "3", "4"]
    # Row 2 has the text of row 0 and the talk of row 3: with either of them it could not be in another split.
    assert ids("unique: [text, talk]") == ["0", "1", "4"]
    assert ids("unique: [text], part: [0.0, 0.5]") + ids("unique: [text], part: [0.5, 1.0]") == ["0", "1", "3", "4"]
    with pytest.raises(InvalidError, match="has a column 'txt'"):
        ids("unique: [txt]")


def test_balance_makes_values_equally_frequent(rows: Path) -> None:
    chosen = train(rows, "{file: rows.jsonl, balance: label}")
    assert Counter(e.row["label"] for e in chosen) == {"a": 10, "b": 10}
    assert len(train(rows, "{file: rows.jsonl, balance: label, limit: 7}")) == 7


def test_csv_and_json_are_read_too(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text('n,text\n1,"a, b"\n2,c\n')
    assert [dict(e.row) for e in train(tmp_path, "{file: rows.csv, id: n}")] == [
        {"n": "1", "text": "a, b"},
        {"n": "2", "text": "c"},
    ]
    (tmp_path / "rows.json").write_text('[{"n": 1}]')
    assert train(tmp_path, "{file: rows.json}")[0].row == {"n": 1}


@pytest.mark.parametrize(
    ("name", "content", "options", "expected"),
    [
        ("bad.jsonl", '{"a": 1}\n{"a": \n', "", "bad.jsonl:2:7: error: not valid JSON"),
        ("bad.jsonl", "[1]\n", "", "bad.jsonl:1: error: every row must be an object"),
        ("bad.csv", "a,b\n1\n", "", "bad.csv:2: error: this row does not have the 2 columns of the header"),
        ("bad.txt", "x", "", "unknown kind of data file; known are .jsonl, .json, .csv"),
        ("bad.jsonl", "", "", "the train split has no rows"),
        ("bad.jsonl", '{"i": 1}\n{"i": 1}\n', ", id: i", "the id '1' stands in bad.jsonl twice"),
        ("bad.jsonl", '{"i": 1}\n{"j": 1}\n', ", id: i", "not every row of bad.jsonl has a column 'i'"),
    ],
)
def test_bad_data_says_where_and_what(tmp_path: Path, name: str, content: str, options: str, expected: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(InvalidError) as caught:
        train(tmp_path, f"{{file: {name}{options}}}")
    assert expected in str(caught.value)


def test_fingerprints_see_every_change() -> None:
    rows = [Example("1", {"a": 1}), Example("2", {"a": 2})]
    assert fingerprint(rows) == fingerprint(list(rows))
    changes = [rows[::-1], rows[:1], [rows[0], Example("2", {"a": 3})], [rows[0], Example("3", {"a": 2})]]
    assert len({fingerprint(rows), *map(fingerprint, changes)}) == 5
