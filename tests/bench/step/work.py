"""The work of grpo_step.py, the same for every side. Standard library only: each side imports it in its own environment."""

from __future__ import annotations

import hashlib
import json
import os
import random
from pathlib import Path

ANSWER = "Answer with the intent name only."


def labels() -> list[str]:
    return list(json.loads((_folder() / "labels.json").read_text()))


def instruction() -> str:
    """All 77 intents stand in the prompt."""
    listed = "\n".join(f"- {label}" for label in labels())
    return f"Classify the banking customer query into exactly one of these intents:\n{listed}\n{ANSWER}"


def question(text: str) -> str:
    return f"Query: {text}\nIntent:"


def queries(count: int) -> list[str]:
    rows = [json.loads(line)["text"] for line in (_folder() / "train.jsonl").read_text().splitlines()]
    random.Random(0).shuffle(rows)
    return rows[:count]


def reward(completion: str) -> float:
    """Between 0 and 1, a hash of the text: so every group has spread, and no side may skip one."""
    return int.from_bytes(hashlib.sha256(completion.strip().encode()).digest()[:4], "big") / 2**32


def _folder() -> Path:
    return Path(os.environ["MMC_DATA"]) / "banking77"
