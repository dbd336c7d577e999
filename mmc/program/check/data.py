"""Data files and corpora: whether they can be read, have the columns that are named, and keep the splits apart."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from mmc.data import SPLITS, read_rows, rows_of, source_rows
from mmc.errors import EnvironmentProblem, InvalidError
from mmc.program.check.findings import Findings
from mmc.program.node import EXAMPLE
from mmc.program.steps import metric_fields, returns
from mmc.spec import model
from mmc.spec.marks import KeyPath
from mmc.spec.metrics import judges_of
from mmc.spec.types import did_you_mean


def check_data(findings: Findings) -> None:
    """The splits, and the corpora of searches."""
    spec = findings.spec
    for name, tool in spec.tools.items():
        if isinstance(tool, model.Bm25Tool):
            path: KeyPath = ("tools", name)
            _rows(findings, (*path, "corpus"), tool.corpus, dict.fromkeys(tool.fields, (*path, "fields")))
    if spec.data is None:
        _report_lacking(findings)
        return
    outputs = {*spec.program.outputs, *(n for names in returns(spec.program.steps) for n in names)}
    judged = _judged(findings, outputs)
    for split in SPLITS:
        _split(findings, split, getattr(spec.data, split), judged)
    train = spec.data.train
    for name, parts in spec.shaping.items():
        for i, part in enumerate(parts):
            gold = metric_fields(part.metric, "gold", ("shaping", name, i, "metric"))
            _source(findings, "train", train, gold)
    _report_lacking(findings)
    _overlap(findings, spec.data)


def _judged(findings: Findings, outputs: Iterable[str]) -> dict[str, KeyPath]:
    """Columns of the data that the judges are shown, and where they are named."""
    spec = findings.spec
    found: dict[str, KeyPath] = {}
    for path, judge in judges_of(spec.metric).items():
        module = spec.modules.get(judge.module)
        if module is None or set(judge.with_) - set(module.inputs):
            continue
        for name in module.inputs:
            place = (*path, "with", name) if name in judge.with_ else (*path, "module")
            used = findings.names(place, judge.with_[name]) if name in judge.with_ else {name}
            found |= dict.fromkeys(used - set(outputs) - {EXAMPLE}, place)
    return found


def _split(findings: Findings, split: str, source: model.DataSource, judged: Mapping[str, KeyPath]) -> None:
    path: KeyPath = ("data", split)
    wanted: dict[str, KeyPath] = {name: ("program", "inputs", name) for name in findings.spec.program.inputs}
    wanted |= metric_fields(findings.spec.metric, "gold")
    wanted |= judged
    wanted |= {column: (*path, key) for key in ("id", "balance") if (column := getattr(source, key))}
    wanted |= {column: (*path, "unique", i) for i, column in enumerate(source.unique)}
    wanted |= {column: (*path, "where", column) for column in source.where}
    low, high = source.part
    if not 0 <= low < high <= 1:
        message = f"a part is [from, to] with 0 <= from < to <= 1; this is [{low:g}, {high:g}]"
        findings.error((*path, "part"), message, "[0.0, 0.8] is the first 80% of the rows")
    elif _source(findings, split, source, wanted) and not rows_of(findings.loaded, split, source):
        keys = ", ".join(f"`{key}`" for key in ("where", "unique", "part") if key in source.model_fields_set)
        findings.error(path, f"no row of {source.place} is left in {split}", f"look at {keys}", at_key=True)


def _source(findings: Findings, split: str, source: model.DataSource, wanted: Mapping[str, KeyPath]) -> bool:
    """Whether a split's rows can be read and all have the ``wanted`` columns; errors where not."""
    path: KeyPath = ("data", split)
    if source.file is not None and not source.columns:
        return _rows(findings, (*path, "file"), source.file, wanted)
    key = "file" if source.file is not None else "dataset"
    if findings.resolve((*path, key), source.place) is None:
        return False
    try:
        rows = source_rows(findings.loaded, split, source)
    except InvalidError as error:
        findings.found.extend(error.diagnostics)
        return False
    except EnvironmentProblem as error:
        problem = findings.loaded.diagnostic((*path, key), str(error))
        findings.found.append(replace(problem, cause="environment"))
        return False
    return _complete(findings, (*path, key), source.place, rows, wanted)


def _rows(findings: Findings, path: KeyPath, name: str, wanted: Mapping[str, KeyPath]) -> bool:
    """Whether a data file can be read and all its rows have the ``wanted`` columns; errors where not."""
    file = findings.resolve(path, name)
    if file is None:
        return False
    try:
        rows = read_rows(file)
    except InvalidError as error:
        for problem in error.diagnostics:
            hint = _neighbours(file) if not file.exists() else problem.hint
            whole = findings.loaded.diagnostic(path, f"{name}: {problem.message}.{hint}")
            findings.found.append(problem if problem.line else whole)
        return False
    return _complete(findings, path, name, rows, wanted)


def _complete(
    findings: Findings,
    path: KeyPath,
    name: str,
    rows: Sequence[Mapping[str, object]],
    wanted: Mapping[str, KeyPath],
) -> bool:
    """Whether there are rows, all with the ``wanted`` columns; errors where not."""
    if not rows:
        findings.error(path, f"{name} has no rows")
        return False
    complete = True
    for column, place in wanted.items():
        lacking = next((number for number, row in enumerate(rows, 1) if column not in row), None)
        if lacking is not None:
            complete = False
            who = name if lacking == 1 else f"row {lacking} of {name}"
            findings.lacking.setdefault((place, column), {})[who] = [str(key) for key in rows[lacking - 1]]
    return complete


def _report_lacking(findings: Findings) -> None:
    """One error for each place that names a column, whatever the number of files that lack it."""
    for (place, column), who in findings.lacking.items():
        known = next(iter(who.values()))
        verb = "has" if len(who) == 1 else "have"
        message = f"{', '.join(who)} {verb} no column {column!r}.{did_you_mean(column, known)}"
        at_key = place[:-1] == ("program", "inputs") or place[-2:-1] == ("where",)
        findings.error(place, message, f"the columns are: {', '.join(known)}", at_key)


def _neighbours(file: Path) -> str:
    return did_you_mean(file.name, [p.name for p in file.parent.iterdir()]) if file.parent.is_dir() else ""


def _overlap(findings: Findings, data: model.Data) -> None:
    """A warning where two splits hold the same rows: scores on them tell little."""
    if findings.found and any(problem.severity == "error" for problem in findings.found):
        return
    taken = {split: rows_of(findings.loaded, split, getattr(data, split)) for split in SPLITS}
    for early, late in itertools.combinations(SPLITS, 2):
        shared = len(taken[early] & taken[late])
        if shared:
            message = f"{shared} of the {len(taken[late])} rows of {late} are also in {early}"
            hint = "keep them apart, with files of their own or with `part`: what was trained or chosen on tells little"
            findings.warning(("data", late), message, hint, at_key=True)
