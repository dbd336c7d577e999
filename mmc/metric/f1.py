"""Token F1 between two texts, as in SQuAD: lower case, no punctuation, no articles."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Mapping
from typing import Any

from mmc.metric.base import Metric, Score
from mmc.spec.load import LoadedSpec
from mmc.spec.marks import KeyPath
from mmc.spec.model import F1Metric


def tokens(text: str) -> list[str]:
    """Words that count."""
    kept = "".join(c for c in text.lower() if c not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", kept).split()


def f1(predicted: str, gold: str, ignored: str = "") -> float:
    """F1 of the words of two texts, those of ``ignored`` left out of both; 1 when neither has any left."""
    out = set(tokens(ignored))
    ours, theirs = (Counter(t for t in tokens(text) if t not in out) for text in (predicted, gold))
    if not ours or not theirs:
        return float(ours == theirs)
    common = sum((ours & theirs).values())
    return 2 * common / (sum(ours.values()) + sum(theirs.values()))


def make_f1(loaded: LoadedSpec, path: KeyPath, config: F1Metric, trust: bool) -> Metric:
    """The metric of a ``type: f1`` block."""

    def score(outputs: Mapping[str, Any], example: Mapping[str, Any]) -> Score:
        known = {**example, **outputs}
        ignored = " ".join(_text(_walk(known, name)) for name in config.ignore)
        return Score(f1(_text(outputs[config.predicted]), _text(example[config.gold]), ignored))

    return score


def _walk(values: Any, name: str) -> Any:
    """``document.title`` is the title in the value of ``document``; nothing where there is none."""
    for part in name.split("."):
        values = values.get(part, "") if isinstance(values, Mapping) else ""
    return values


def _text(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
