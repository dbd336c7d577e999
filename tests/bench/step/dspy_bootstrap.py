"""DSPy's start and its BootstrapFewShot on Banking77, over an OpenAI-compatible server; prints one JSON line.

Knows nothing of mmc.

python dspy_bootstrap.py ADDRESS MODEL COUNT TRAIN
"""

from __future__ import annotations

import json
import sys
from typing import Any

import dspy
import dspy_work
import work


def main(address: str, model: str, count: int, train: int) -> None:
    lm, start, evaluate = (
        dspy_work.configure(address, model),
        dspy.Predict(dspy_work.signature()),
        dspy_work.evaluate(count),
    )

    def scores(program: Any) -> list[float]:
        return [float(score) for _, _, score in evaluate(program).results]

    before = scores(start)
    optimizer = dspy.BootstrapFewShot(metric=dspy_work.exact, max_errors=10**6)
    after = optimizer.compile(start, trainset=dspy_work.examples(work.labelled(train, "train.jsonl")))
    found = {"start": before, "bootstrap": scores(after), "demos": len(after.demos), "calls": len(lm.history)}
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
