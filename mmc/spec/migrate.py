"""Specs of an older version of the format, rewritten as text: comments and layout stay.

To change the format: raise ``CURRENT``, add the step from the version before to ``STEPS``, and put old specs into
``tests/spec/old``. What a former key is called now goes into ``FORMER``, for specs that claim to be new and are not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import mmc
from mmc.errors import Diagnostic, InvalidError
from mmc.spec.marks import Document, KeyPath, parse
from mmc.spec.rewrite import flow, remove, rename, rewrite

CURRENT = 1
"""The version of the format that this mmc reads."""

FORMER: Mapping[str, str] = {
    "decay": "version 0 said `decay: true`; it is `schedule: linear` now",
    "groups": "version 0 said `groups: truncate`; it is `grouping: {uneven: truncate}` now",
    "ignore": "F1 leaves no words out since version 1; a `type: python` metric can",
}
"""Keys that no block has any more -> what there is instead."""


@dataclass(frozen=True)
class Migration:
    """A spec's text before and after, and the versions of both."""

    before: str
    after: str
    old: int
    new: int = CURRENT


def version_problem(document: Document) -> tuple[Diagnostic | None, bool]:
    """What is wrong with a spec's version, and whether the rest can be read as the present one all the same."""
    if "mmc" not in document.data:
        message = "the key 'mmc' is missing here: the version of the format"
        hint = f"write `mmc: {CURRENT}` above; a spec from before there were versions: mmc migrate {document.file}"
        return document.diagnostic((), message, hint), True
    said = document.data["mmc"]
    if not isinstance(said, int) or isinstance(said, bool) or said < 0:
        message = f"the version of the format must be a whole number, got {said!r}"
        return document.diagnostic(("mmc",), message, f"write `mmc: {CURRENT}`"), True
    if said > CURRENT:
        message = f"this spec is of version {said}; mmc {mmc.__version__} reads versions up to {CURRENT}"
        return document.diagnostic(("mmc",), message, "upgrade it: pip install --upgrade mmc"), False
    if said < CURRENT:
        message = f"this spec is of version {said}; the present one is {CURRENT}"
        return document.diagnostic(("mmc",), message, f"rewrite it: mmc migrate {document.file}"), False
    return None, True


def migrate(text: str, file: str) -> Migration:
    """Brings a spec to the present version; one without a version counts as version 0.

    Raises InvalidError for a version that is newer or none, and for what has no counterpart in the present one.
    """
    document = parse(text, file)
    problem, _ = version_problem(document)
    old = document.data.get("mmc", 0)
    if problem is not None and (not isinstance(old, int) or not 0 <= old < CURRENT):
        raise InvalidError([problem])
    found = text
    for version in range(old, CURRENT):
        found = _with_version(STEPS[version](found, file), version + 1)
    return Migration(text, found, old)


def _with_version(text: str, version: int) -> str:
    document = parse(text, "spec")
    if "mmc" in document.data or document.root.flow_style:
        return rewrite(text, {("mmc",): version})
    start = document.root.start_mark.index
    return f"{text[:start]}mmc: {version}\n{text[start:]}"


# --- from version 0 to version 1 ----------------------------------------------------------------------------------


def _from_0(text: str, file: str) -> str:
    """`decay` and `groups` of weights became `schedule` and `grouping`; F1's `ignore` went."""
    weights: KeyPath = ("compile", "weights")
    values = parse(text, file)
    said = _at(values.data, weights)
    if isinstance(said, Mapping) and "decay" in said:
        text = _replaced(text, (*weights, "decay"), ("schedule", "linear") if said["decay"] else None)
    if isinstance(said, Mapping) and "groups" in said:
        text = _replaced(text, (*weights, "groups"), ("grouping", {"uneven": said["groups"]}))
    for path in _ignores(values.data):
        if _at(values.data, path):
            raise InvalidError([values.diagnostic(path, FORMER["ignore"], at_key=True)])
        text = remove(text, path)
    return text


def _replaced(text: str, path: KeyPath, entry: tuple[str, object] | None) -> str:
    """The entry under ``path`` with another key and value, or without it."""
    if entry is None:
        return remove(text, path)
    key, value = entry
    return rewrite(rename(text, path, flow(key)), {(*path[:-1], key): value})


def _ignores(data: Mapping[str, Any]) -> Iterator[KeyPath]:
    """Where an F1 metric says `ignore`."""
    waiting: list[tuple[KeyPath, Any]] = [((key,), data.get(key)) for key in ("metric", "shaping")]
    while waiting:
        path, value = waiting.pop()
        if isinstance(value, Mapping):
            if value.get("type") == "f1" and "ignore" in value:
                yield (*path, "ignore")
            waiting += [((*path, key), inner) for key, inner in value.items()]
        elif isinstance(value, list):
            waiting += [((*path, i), inner) for i, inner in enumerate(value)]


def _at(data: Any, path: KeyPath) -> Any:
    for part in path:
        if not isinstance(data, Mapping | list) or (isinstance(data, Mapping) and part not in data):
            return None
        data = data[part]  # type: ignore[index]
    return data


STEPS: Mapping[int, Callable[[str, str], str]] = {0: _from_0}
"""Version -> a function of (text, file) that gives the text of the version after it, all but the version itself."""
