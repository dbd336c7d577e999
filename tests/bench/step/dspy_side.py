"""DSPy's side of classify.py: Predict over an OpenAI-compatible server; prints one JSON line. Knows nothing of mmc.

python dspy_side.py ADDRESS MODEL COUNT
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any, Literal

import dspy
import work


def main(address: str, model: str, count: int) -> None:
    labels = tuple(work.labels())
    signature = dspy.Signature(
        {"query": (str, dspy.InputField()), "intent": (Literal[labels], dspy.OutputField())},
        work.TASK,
    )
    lm = dspy.LM(f"openai/{model}", api_base=address, api_key="none", temperature=0.0, max_tokens=64, cache=False)
    dspy.configure(lm=lm)
    rows = [dspy.Example(query=text, intent=label).with_inputs("query") for text, label in work.labelled(count)]

    def exact(example: Any, prediction: Any, trace: Any = None) -> float:
        return float(prediction.intent == example.intent)

    evaluate = dspy.Evaluate(
        devset=rows, metric=exact, num_threads=16, display_progress=False, max_errors=10**6, failure_score=0.0
    )
    start = time.perf_counter()
    score = evaluate(dspy.Predict(signature)).score
    print(json.dumps({"seconds": time.perf_counter() - start, "score": score / 100, "calls": len(lm.history)}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
