"""Whatever is wrong with a spec, it is said, at a place in the file, and nothing breaks."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mmc.errors import Diagnostic, InvalidError
from mmc.program.check import check
from mmc.spec.load import survey
from mmc.spec.marks import KeyPath, parse
from mmc.spec.problems import PATTERNS
from mmc.spec.rewrite import flow
from mmc.spec.schema import schema_text

SPEC = Path(__file__).parents[2] / "specs/helpdesk.yaml"
WRONG = [None, 5, -1, 0.5, True, "x", "{{ x", [], [1], [[]], {}, {"a": 1}, {"type": "bm25"}]


def places(value: Any, path: KeyPath = ()) -> Iterator[KeyPath]:
    if path:
        yield path
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in pairs:
        yield from places(inner, (*path, key))


def mutated(data: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The spec with each of its values replaced by three of the wrong ones, each key misspelled, and each key left out."""
    for i, path in enumerate(places(data)):
        for wrong in [*(WRONG[(i + shift) % len(WRONG)] for shift in (0, 4, 9)), "left out", "misspelled"]:
            changed = copy.deepcopy(data)
            holder: Any = changed
            for part in path[:-1]:
                holder = holder[part]
            if wrong == "left out":
                del holder[path[-1]]
            elif wrong == "misspelled" and isinstance(holder, dict):
                holder[f"{path[-1]}z"] = holder.pop(path[-1])
            else:
                holder[path[-1]] = wrong
            yield changed


def found(path: Path) -> list[Diagnostic]:
    try:
        loaded, shape = survey(path)
    except InvalidError as error:
        return list(error.diagnostics)
    return [*shape, *(check(loaded) if loaded is not None else ())]


def test_no_wrong_value_misspelling_or_omission_breaks_the_checks(tmp_path: Path) -> None:
    data = parse(SPEC.read_text().replace("../", f"{SPEC.parents[1]}/"), "spec").data
    spec = tmp_path / "spec.yaml"
    count = silent = 0
    for changed in mutated(data):
        # A line a key, so that a problem's line tells the key it is placed at.
        spec.write_text("".join(f"{flow(key)}: {flow(value)}\n" for key, value in changed.items()))
        problems = found(spec)
        count, silent = count + 1, silent + (not problems)
        assert all(p.line > 0 and p.message for p in problems if p.file == str(spec)), changed
    assert count > 300 and silent < count / 4


def test_every_pattern_is_said_in_words() -> None:
    assert set(re.findall(r'"pattern": "(.*?)"[,\n]', schema_text())) == {
        json.dumps(pattern)[1:-1] for pattern in PATTERNS
    }


def test_what_was_misspelled_counts_as_what_was_meant(tmp_path: Path) -> None:
    spec = tmp_path / "spec.yaml"
    text = SPEC.read_text().replace("../", f"{SPEC.parents[1]}/")
    spec.write_text(text.replace("  weights:\n", "  wieghts:\n").replace("rollouts: 8", "rollouts: 8\n    loss: grop"))
    assert [(p.source.strip(), p.message.split(".")[0]) for p in found(spec)] == [
        ("wieghts:", "unknown key 'wieghts'"),
        ("loss: grop", "`loss` must be 'grpo', 'dr_grpo', 'dapo', 'gspo' or 'cispo', got 'grop'"),
    ]


@pytest.mark.parametrize(
    "text", ["", "- 1\n", "a: {", "mmc: 1\n", "mmc: 1\nname:\n", "\t", "a: *b\n", "{}\n", "? {a: b}\n: c\n"]
)
def test_what_is_hardly_a_spec_is_said_too(text: str, tmp_path: Path) -> None:
    (tmp_path / "spec.yaml").write_text(text)
    assert found(tmp_path / "spec.yaml")
