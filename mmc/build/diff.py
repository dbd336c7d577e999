"""What differs between two specs or builds: keys, words of prompts, scores on the same examples, adapters."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmc.data.hub import LOCAL
from mmc.metric import Interval, paired
from mmc.prompt import Template
from mmc.report.html import words_changed
from mmc.spec import load
from mmc.spec.load import LoadedSpec

Piece = tuple[str, str]
"""(same | added | removed, text)."""
_PLACES = ("file", "corpus", "spec")
"""Keys that hold paths, which in a build differ from its spec's without meaning anything else."""
_TEMPLATES = ("template", "alternatives", "templates")
"""Keys of templates, whose words are compared instead."""


@dataclass(frozen=True)
class KeyChange:
    """A key of the spec whose value differs; None: it is not there."""

    key: str
    before: Any
    after: Any


@dataclass(frozen=True)
class PromptChange:
    """The words of one module's template, slot by slot; text outside of slots under the name ''."""

    module: str
    slots: Mapping[str, tuple[Piece, ...]]


@dataclass(frozen=True)
class ScoreChange:
    """Last scores of two builds; of a build against a spec, which has none, those from the build's own start to its end.

    ``gain`` is paired where both are of the same examples.
    """

    before: float
    after: float
    gain: Interval | None
    won: tuple[str, ...] = ()
    """Ids of the examples that score higher now."""
    lost: tuple[str, ...] = ()
    own_start: bool = False
    """Whether ``before`` is the start of the second build itself."""


@dataclass(frozen=True)
class Difference:
    """All that differs between two programs."""

    keys: tuple[KeyChange, ...]
    prompts: tuple[PromptChange, ...]
    adapters: tuple[KeyChange, ...]
    scores: ScoreChange | None

    @property
    def nothing(self) -> bool:
        return not (self.keys or self.prompts or self.adapters or self.scores)


def diff(before: Path, after: Path) -> Difference:
    """Compares two spec files or build folders. Raises InvalidError when one cannot be loaded."""
    old, new = load(before), load(after)
    return Difference(
        keys=tuple(_keys(_plain(old), _plain(new))),
        prompts=tuple(_prompts(old, new)),
        adapters=tuple(_keys(_adapters(old), _adapters(new))),
        scores=_scores(old.folder, new.folder),
    )


def _plain(loaded: LoadedSpec) -> dict[str, Any]:
    """The spec's own keys as plain data, less places of files and what a compile wrote."""
    found = loaded.spec.model_dump(mode="json", by_alias=True, exclude={"adapters", "origin"}, exclude_unset=True)
    return {key: _without_places(value) for key, value in found.items()}


def _without_places(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_places(one) for one in value]
    if not isinstance(value, dict):
        return value
    kept = {key: one for key, one in value.items() if key not in _TEMPLATES}
    return {k: Path(v).name if isinstance(v, str) and _is_place(k, v) else _without_places(v) for k, v in kept.items()}


def _is_place(key: str, value: str) -> bool:
    return key in _PLACES or (key == "dataset" and value.startswith(LOCAL))


def _keys(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> Iterator[KeyChange]:
    for key in dict.fromkeys([*old, *new]):
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            yield from _keys(before, after, f"{prefix}{key}.")
        elif before != after:
            yield KeyChange(f"{prefix}{key}", before, after)


def _prompts(old: LoadedSpec, new: LoadedSpec) -> Iterator[PromptChange]:
    for module in old.spec.modules.keys() & new.spec.modules.keys():
        first, second = (Template.load(one.resolve(one.spec.modules[module].template)) for one in (old, new))
        if first.source == second.source:
            continue
        slots: dict[str, tuple[Piece, ...]] = {}
        for slot in dict.fromkeys([*first.slots, *second.slots]):
            texts = first.slots.get(slot, ""), second.slots.get(slot, "")
            if texts[0] != texts[1]:
                slots[slot] = tuple(words_changed(*texts))
        bare = _bare(first), _bare(second)
        if bare[0] != bare[1]:
            slots[""] = tuple(words_changed(*bare))
        yield PromptChange(module, slots)


def _bare(template: Template) -> str:
    """The template with empty slots."""
    for slot in template.slots:
        template = template.with_slot(slot, "")
    return template.source


def _adapters(loaded: LoadedSpec) -> dict[str, Any]:
    """Module -> what its adapter is."""
    lock = _json(loaded.folder / "mmc.lock")
    found = {}
    for module, folder in loaded.spec.adapters.items():
        config = _json(loaded.resolve(folder) / "adapter_config.json")
        name = Path(folder).name
        known = {
            "rank": config.get("r"),
            "alpha": config.get("lora_alpha"),
            "sha256": lock.get("adapters", {}).get(name),
        }
        found[module] = {"adapter": name, **{key: value for key, value in known.items() if value is not None}}
    return found


def _scores(old: Path, new: Path) -> ScoreChange | None:
    first, second = _json(old / "scores.json"), _json(new / "scores.json")
    if not second:
        return None
    last = list(second["stages"].values())[-1]
    begin = list(first["stages"].values())[-1] if first else next(iter(second["stages"].values()))
    mean = sum(begin) / len(begin), sum(last) / len(last)
    if first and first["data"] != second["data"]:
        return ScoreChange(*mean, None)
    pairs = list(zip(second["examples"], begin, last, strict=True))
    won, lost = (tuple(name for name, a, b in pairs if (b - a) * sign > 0) for sign in (1, -1))
    return ScoreChange(*mean, paired(begin, last), won, lost, own_start=not first)


def _json(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}
