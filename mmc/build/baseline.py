"""A program's scores against those that a build was left with."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from mmc.data import Example, fingerprint
from mmc.errors import Diagnostic, InvalidError, UsageError
from mmc.metric import Interval, paired


def against(build: Path, examples: Sequence[Example], scores: Sequence[float]) -> Interval:
    """The mean gain over the build's last scores, example by example.

    Raises InvalidError when ``build`` is none, UsageError when it was scored on other examples.
    """
    file = build / "scores.json"
    if not file.is_file():
        raise InvalidError([Diagnostic(str(build), 0, 0, "there is no scores.json here; a baseline is a build folder")])
    found = json.loads(file.read_text(encoding="utf-8"))
    known = dict(zip(found["examples"], list(found["stages"].values())[-1], strict=True))
    if found["data"] != fingerprint(examples):
        raise UsageError(
            f"--baseline {build}: it was scored on other examples (its {found['split']} split, {len(known)} of them)"
        )
    return paired([known[example.id] for example in examples], scores)
