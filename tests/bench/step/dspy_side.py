"""DSPy's side of classify.py: Predict over an OpenAI-compatible server; prints one JSON line. Knows nothing of mmc.

python dspy_side.py ADDRESS MODEL COUNT
"""

from __future__ import annotations

import json
import sys
import time

import dspy
import dspy_work


def main(address: str, model: str, count: int) -> None:
    lm, program, evaluate = (
        dspy_work.configure(address, model),
        dspy.Predict(dspy_work.signature()),
        dspy_work.evaluate(count),
    )
    start = time.perf_counter()
    score = evaluate(program).score
    print(json.dumps({"seconds": time.perf_counter() - start, "score": score / 100, "calls": len(lm.history)}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
