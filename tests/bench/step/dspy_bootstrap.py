"""DSPy's start and its BootstrapFewShot on Banking77, over an OpenAI-compatible server; prints one JSON line.

Knows nothing of mmc.

python dspy_bootstrap.py ADDRESS MODEL COUNT TRAIN
"""

from __future__ import annotations

import json
import sys
from typing import Any, Literal

import dspy
import work


def main(address: str, model: str, count: int, train: int) -> None:
    labels = tuple(work.labels())
    signature = dspy.Signature(
        {"query": (str, dspy.InputField()), "intent": (Literal[labels], dspy.OutputField())},
        work.TASK,
    )
    lm = dspy.LM(f"openai/{model}", api_base=address, api_key="none", temperature=0.0, max_tokens=64, cache=False)
    dspy.configure(lm=lm)

    def examples(rows: list[tuple[str, str]]) -> list[Any]:
        return [dspy.Example(query=text, intent=label).with_inputs("query") for text, label in rows]

    def exact(example: Any, prediction: Any, trace: Any = None) -> float:
        return float(prediction.intent == example.intent)

    evaluate = dspy.Evaluate(
        devset=examples(work.labelled(count)),
        metric=exact,
        num_threads=16,
        display_progress=False,
        max_errors=10**6,
        failure_score=0.0,
    )

    def scores(program: Any) -> list[float]:
        return [float(score) for _, _, score in evaluate(program).results]

    start = dspy.Predict(signature)
    before = scores(start)
    optimizer = dspy.BootstrapFewShot(metric=exact, max_errors=10**6)
    after = optimizer.compile(start, trainset=examples(work.labelled(train, "train.jsonl")))
    found = {"start": before, "bootstrap": scores(after), "demos": len(after.demos), "calls": len(lm.history)}
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
