"""DSPy's side of runner.py: two modules and Evaluate over a server that answers at once; prints one JSON line.

python dspy_runner.py ADDRESS COUNT THREADS
"""

from __future__ import annotations

import json
import resource
import sys
import time
from typing import Any

import dspy


class Colours(dspy.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.summarize = dspy.Predict("text -> summary")
        self.decide = dspy.Predict("text, summary -> colour")

    def forward(self, text: str) -> Any:
        return self.decide(text=text, summary=self.summarize(text=text).summary)


def exact(example: Any, prediction: Any, trace: Any = None) -> float:
    return float(prediction.colour == example.colour)


def main(address: str, count: int, threads: int) -> None:
    dspy.configure(
        lm=dspy.LM("openai/stub", api_base=address, api_key="none", temperature=0.0, max_tokens=64, cache=False)
    )
    rows = [
        dspy.Example(text=f"Example number {i}: what colour?", colour="blue").with_inputs("text") for i in range(count)
    ]
    program = Colours()
    program(text="warm")
    evaluate = dspy.Evaluate(devset=rows, metric=exact, num_threads=threads, display_progress=False)
    start, cpu = time.perf_counter(), time.process_time()
    score = evaluate(program).score
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    print(json.dumps({"seconds": seconds, "cpu": cpu, "score": score / 100, "memory_mib": memory}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
