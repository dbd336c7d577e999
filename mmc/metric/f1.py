"""Token F1 between two texts, as in SQuAD: lower case, no punctuation, no articles."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Mapping
from typing import Any

from mmc.metric.base import NONE, Metric, Score, Verdicts
from mmc.spec.load import LoadedSpec
from mmc.spec.marks import KeyPath
from mmc.spec.metrics import F1Metric


def tokens(text: str) -> list[str]:
    """Words that count."""
    kept = "".join(c for c in text.lower() if c not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", kept).split()


def f1(predicted: str, gold: str) -> float:
    """F1 of the words of two texts; 1 when neither has any."""
    ours, theirs = Counter(tokens(predicted)), Counter(tokens(gold))
    if not ours or not theirs:
        return float(ours == theirs)
    common = sum((ours & theirs).values())
    return 2 * common / (sum(ours.values()) + sum(theirs.values()))


def make_f1(loaded: LoadedSpec, path: KeyPath, config: F1Metric, trust: bool) -> Metric:
    """The metric of a ``type: f1`` block."""

    def score(outputs: Mapping[str, Any], example: Mapping[str, Any], verdicts: Verdicts = NONE) -> Score:
        return Score(f1(_text(outputs[config.predicted]), _text(example[config.gold])))

    return score


def _text(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
