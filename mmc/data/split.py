"""One split of a spec's data."""

from __future__ import annotations

import csv
import hashlib
import json
import random
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from mmc.data.hub import LOCAL, NotThere, load_hub
from mmc.errors import Diagnostic, InvalidError
from mmc.spec.load import LoadedSpec
from mmc.spec.model import DataSource

SplitName = Literal["train", "dev", "test"]
SPLITS: tuple[SplitName, ...] = ("train", "dev", "test")
Row = dict[str, Any]


@dataclass(frozen=True)
class Example:
    """One row of data. ``id`` names it within its split."""

    id: str
    row: Mapping[str, Any]


def _jsonl(path: Path) -> Iterator[tuple[int, Any]]:
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                try:
                    yield number, json.loads(line.rstrip("\n"))
                except ValueError as error:
                    raise _not_json(path, number, error, line) from None


def _json(path: Path) -> Iterator[tuple[int, Any]]:
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise _not_json(path, getattr(error, "lineno", 0), error) from None
    if not isinstance(rows, list):
        raise _bad(path, 1, "a JSON data file holds a list of objects")
    yield from ((0, row) for row in rows)


def _csv(path: Path) -> Iterator[tuple[int, Any]]:
    with path.open(encoding="utf-8", newline="") as lines:
        reader = csv.DictReader(lines)
        for row in reader:
            if None in row or None in row.values():
                raise _bad(
                    path,
                    reader.line_num,
                    f"this row does not have the {len(reader.fieldnames or [])} columns of the header",
                )
            yield reader.line_num, row


READERS: Mapping[str, Callable[[Path], Iterator[tuple[int, Any]]]] = {".jsonl": _jsonl, ".json": _json, ".csv": _csv}
"""File suffix -> reader that yields (line number, row)."""


def _not_json(path: Path, line: int, error: ValueError, source: str = "") -> InvalidError:
    message = f"not valid JSON: {getattr(error, 'msg', error)}"
    return InvalidError([Diagnostic(str(path), line, getattr(error, "colno", 0), message, source=source[:120])])


def _bad(path: Path, line: int, message: str, source: str = "") -> InvalidError:
    return InvalidError([Diagnostic(str(path), line, 0, message, source=source[:120])])


@lru_cache(maxsize=32)
def _read(path: Path, modified: int) -> tuple[Row, ...]:
    rows = []
    for line, row in READERS[path.suffix](path):
        if not isinstance(row, dict):
            raise _bad(path, line, "every row must be an object with named columns")
        rows.append(row)
    return tuple(rows)


def read_rows(path: Path) -> tuple[Row, ...]:
    """All rows of a data file. Raises InvalidError with file and line."""
    if path.suffix not in READERS:
        raise _bad(path, 0, f"unknown kind of data file; known are {', '.join(READERS)}")
    try:
        return _read(path, path.stat().st_mtime_ns)
    except FileNotFoundError:
        raise _bad(path, 0, "there is no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise _bad(path, 0, f"cannot be read as UTF-8 text: {error}") from None


def load_split(loaded: LoadedSpec, split: SplitName) -> tuple[Example, ...]:
    """The examples of one split. Raises InvalidError for bad files, missing columns, repeated ids, an empty split."""
    if loaded.spec.data is None:
        raise InvalidError(
            [loaded.diagnostic((), "the spec has no `data`", "add data: {train: ..., dev: ..., test: ...}")]
        )
    source: DataSource = getattr(loaded.spec.data, split)
    rows = source_rows(loaded, split, source)
    _check_columns(loaded, split, source, rows)
    numbered = [Example(str(row[source.id]) if source.id else str(i), row) for i, row in enumerate(rows)]
    chosen = _select(numbered, source)
    if not chosen:
        raise InvalidError([loaded.diagnostic(("data", split), f"the {split} split has no rows")])
    ids = [e.id for e in chosen]
    if len(set(ids)) < len(ids):
        twice = next(i for i in ids if ids.count(i) > 1)
        raise InvalidError(
            [loaded.diagnostic(("data", split, "id"), f"the id {twice!r} stands in {Path(source.place).name} twice")]
        )
    return tuple(chosen)


def source_rows(loaded: LoadedSpec, split: str, source: DataSource) -> tuple[Row, ...]:
    """All rows that a split chooses from, their columns named as the spec wants. Raises InvalidError, EnvironmentProblem."""
    if source.file is not None:
        rows = read_rows(loaded.resolve(source.file))
    else:
        try:
            rows = load_hub(*_of_hub(loaded, source)).rows
        except NotThere as problem:
            place = ("data", split, problem.key if problem.key in source.model_fields_set else "dataset")
            raise InvalidError([loaded.diagnostic(place, f"{source.dataset}: {problem}", problem.hint)]) from None
    return _renamed(loaded, split, source, rows) if source.columns else rows


def commit_of(loaded: LoadedSpec, source: DataSource) -> str | None:
    """The commit of the hub that a split's rows are from; None for files and folders."""
    return None if source.dataset is None else load_hub(*_of_hub(loaded, source)).commit


def _of_hub(loaded: LoadedSpec, source: DataSource) -> tuple[str, str | None, str, str | None]:
    """What tells a split of a data set from others: name or folder, configuration, split, revision."""
    name = source.dataset or ""
    name = str(loaded.resolve(name)) if name.startswith(LOCAL) else name
    return name, source.config, source.split or "train", source.revision


def _renamed(loaded: LoadedSpec, split: str, source: DataSource, rows: Sequence[Row]) -> tuple[Row, ...]:
    for new, old in source.columns.items():
        if any(old not in row for row in rows):
            known = ", ".join(rows[0]) if rows else "none"
            message = f"not every row of {source.place} has a column {old!r}"
            place = ("data", split, "columns", new)
            raise InvalidError([loaded.diagnostic(place, message, f"the first row has: {known}")])
    taken = set(source.columns.values())
    return tuple(
        {**{k: v for k, v in row.items() if k not in taken}, **{new: row[old] for new, old in source.columns.items()}}
        for row in rows
    )


def rows_of(loaded: LoadedSpec, split: str, source: DataSource) -> set[tuple[Hashable, int]]:
    """Which rows of which file or data set belong to a split. What it names must be in order."""
    place = loaded.resolve(source.file) if source.file is not None else _of_hub(loaded, source)
    numbered = [Example(str(i), row) for i, row in enumerate(source_rows(loaded, split, source))]
    return {(place, int(example.id)) for example in _select(numbered, source)}


def _check_columns(loaded: LoadedSpec, split: str, source: DataSource, rows: Sequence[Row]) -> None:
    wanted: dict[tuple[str | int, ...], str | None] = {("id",): source.id, ("balance",): source.balance}
    wanted |= {("where", column): column for column in source.where}
    wanted |= {("unique", i): column for i, column in enumerate(source.unique)}
    for key, column in wanted.items():
        if column is not None and any(column not in row for row in rows):
            known = ", ".join(rows[0]) if rows else "none"
            message = f"not every row of {source.place} has a column {column!r}"
            raise InvalidError([loaded.diagnostic(("data", split, *key), message, f"the first row has: {known}")])


def _select(examples: Sequence[Example], source: DataSource) -> list[Example]:
    """Shuffle, where, unique, part, balance, limit: in this order."""
    chosen = list(examples)
    if source.shuffle is not None:
        random.Random(source.shuffle).shuffle(chosen)
    for column, value in source.where.items():
        allowed = value if isinstance(value, list) else [value]
        chosen = [example for example in chosen if example.row[column] in allowed]
    if source.unique:
        chosen = _unique(chosen, source.unique)
    low, high = source.part
    chosen = chosen[round(low * len(chosen)) : round(high * len(chosen))]
    if source.balance is not None:
        chosen = _balanced(chosen, source.balance)
    return chosen[: source.limit]


def _unique(examples: Sequence[Example], columns: Sequence[str]) -> list[Example]:
    """Those that agree in none of the columns with one before them; those left out count as being before."""
    seen: set[tuple[str, str]] = set()
    kept = []
    for example in examples:
        values = {(column, json.dumps(example.row[column], sort_keys=True, default=str)) for column in columns}
        if seen.isdisjoint(values):
            kept.append(example)
        seen |= values
    return kept


def _balanced(examples: Sequence[Example], column: str) -> list[Example]:
    """As many of every value as of the rarest one, in the order they stand."""
    counts: dict[str, int] = defaultdict(int)
    for example in examples:
        counts[str(example.row[column])] += 1
    rarest = min(counts.values(), default=0)
    taken: dict[str, int] = defaultdict(int)
    kept = []
    for example in examples:
        value = str(example.row[column])
        if taken[value] < rarest:
            taken[value] += 1
            kept.append(example)
    return kept


def fingerprint(examples: Sequence[Example]) -> str:
    """SHA-256 over ids and rows, in order."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(json.dumps([example.id, example.row], sort_keys=True, default=str).encode())
    return digest.hexdigest()
