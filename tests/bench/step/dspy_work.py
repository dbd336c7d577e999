"""What both of DSPy's sides share: the signature, the model, the examples and how they are scored."""

from __future__ import annotations

from typing import Any, Literal

import dspy
import work


def signature() -> Any:
    """A query in, one of the 77 intents out."""
    labels = tuple(work.labels())
    return dspy.Signature(
        {"query": (str, dspy.InputField()), "intent": (Literal[labels], dspy.OutputField())}, work.TASK
    )


def configure(address: str, model: str) -> Any:
    """The model that DSPy calls from now on."""
    lm = dspy.LM(f"openai/{model}", api_base=address, api_key="none", temperature=0.0, max_tokens=64, cache=False)
    dspy.configure(lm=lm)
    return lm


def examples(rows: list[tuple[str, str]]) -> list[Any]:
    return [dspy.Example(query=text, intent=label).with_inputs("query") for text, label in rows]


def exact(example: Any, prediction: Any, trace: Any = None) -> float:
    return float(prediction.intent == example.intent)


def evaluate(count: int) -> Any:
    """Scores a program on the first test queries; one that cannot be read counts as wrong."""
    return dspy.Evaluate(
        devset=examples(work.labelled(count)),
        metric=exact,
        num_threads=16,
        display_progress=False,
        max_errors=10**6,
        failure_score=0.0,
    )
