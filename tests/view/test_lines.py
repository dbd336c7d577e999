"""Reading lines of files that are being written."""

from __future__ import annotations

import json
from pathlib import Path

from mmc.view.lines import Lines, read_json


def numbers(lines: Lines[int]) -> list[int]:
    return [line.summary for line in lines.all()]


def test_a_half_written_last_line_waits_until_it_is_whole(tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    lines = Lines(file, lambda row: int(row["n"]))
    assert numbers(lines) == []
    file.write_text('{"n": 1}\n{"n": ')
    assert numbers(lines) == [1]
    with file.open("a") as more:
        more.write('2}\n{"n": 3}\n')
    assert numbers(lines) == [1, 2, 3] and lines.row(1) == {"n": 2}
    assert lines.row(3) is None and lines.row(-1) is None


def test_each_line_is_read_once(tmp_path: Path) -> None:
    file, seen = tmp_path / "x.jsonl", []

    def noted(row: dict[str, int]) -> int:
        seen.append(row["n"])
        return row["n"]

    lines = Lines(file, noted)
    for n in range(4):
        with file.open("a") as more:
            more.write(json.dumps({"n": n}) + "\n")
        lines.all()
    assert seen == [0, 1, 2, 3]


def test_a_file_written_anew_by_a_resume_is_read_anew(tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    file.write_text('{"n": 1}\n{"n": 2}\n')
    lines = Lines(file, lambda row: int(row["n"]))
    assert numbers(lines) == [1, 2]
    (tmp_path / "new").write_text('{"n": 1}\n{"n": 5}\n{"n": 6}\n')
    (tmp_path / "new").replace(file)
    assert numbers(lines) == [1, 5, 6]
    file.write_text('{"n": 9}\n')
    assert numbers(lines) == [9]
    file.unlink()
    assert numbers(lines) == []


def test_lines_that_are_no_objects_are_passed_over(tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    file.write_bytes(b'{"n": 1}\n\xff\xfe\n[2]\nno\n{"n": 3}\n')
    lines = Lines(file, lambda row: int(row["n"]))
    assert numbers(lines) == [1, 3] and lines.row(1) == {"n": 3}


def test_json_that_is_missing_or_half_there_is_none(tmp_path: Path) -> None:
    (tmp_path / "half.json").write_text('{"a": ')
    assert read_json(tmp_path / "half.json") is None and read_json(tmp_path / "no.json") is None
