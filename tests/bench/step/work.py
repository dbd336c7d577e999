"""The work of grpo_step.py, the same for every side. Standard library only: each side imports it in its own environment."""

from __future__ import annotations

import hashlib
import json
import os
import random
from pathlib import Path

TASK = "Classify the banking customer query into exactly one of these intents"
ANSWER = "Answer with the intent name only."


def labels() -> list[str]:
    return list(json.loads((_folder() / "labels.json").read_text()))


def instruction() -> str:
    """All 77 intents stand in the prompt."""
    listed = "\n".join(f"- {label}" for label in labels())
    return f"{TASK}:\n{listed}\n{ANSWER}"


def conversations(work: str, count: int) -> list[tuple[str, str]]:
    """(system, user) messages. ``labels``: classify a query, all 77 intents in the prompt; ``apart``: about 100 tokens that
    begin differently each.
    """
    rows = [json.loads(line)["text"] for line in (_folder() / "train.jsonl").read_text().splitlines()]
    random.Random(0).shuffle(rows)
    if work == "labels":
        return [(instruction(), f"Query: {text}\nIntent:") for text in rows[:count]]
    found, beginnings = [], set[str]()
    while len(found) < count:
        several = [rows.pop() for _ in range(6)]
        if several[0][:12] not in beginnings:
            beginnings.add(several[0][:12])
            found.append((several[0], " ".join(several[1:])))
    return found


def labelled(count: int, file: str = "test.jsonl") -> list[tuple[str, str]]:
    """Queries and their intents; of test, the first that `shuffle: 0` gives in a spec too."""
    rows = [json.loads(line) for line in (_folder() / file).read_text().splitlines()]
    random.Random(0).shuffle(rows)
    return [(row["text"], row["label"]) for row in rows[:count]]


def reward(completion: str) -> float:
    """Between 0 and 1, a hash of the text: so every group has spread, and no side may skip one."""
    return int.from_bytes(hashlib.sha256(completion.strip().encode()).digest()[:4], "big") / 2**32


def _folder() -> Path:
    return Path(os.environ["MMC_DATA"]) / "banking77"
