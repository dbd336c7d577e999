"""How hard the helpdesk task is without any LM: prints the figures that README.md states.

python examples/helpdesk/difficulty.py
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mmc.tool.bm25 import Bm25

HERE = Path(__file__).parent
Row = dict[str, Any]


def rows(name: str) -> list[Row]:
    return [json.loads(line) for line in (HERE / name).read_text(encoding="utf-8").splitlines()]


def share(found: Callable[[str], Sequence[str]], questions: Sequence[Row]) -> float:
    """Share of questions whose article is among those found."""
    return sum(q["article"] in found(q["question"]) for q in questions) / len(questions)


def main() -> None:
    articles, train, test = rows("articles.jsonl"), rows("train.jsonl"), rows("test.jsonl")
    for k in (1, 3, 5, 8, 10):
        found = searcher(Bm25(articles, ["title", "text", "keywords"], k), "id")
        print(f"BM25 on the raw question, right article in the top {k}: {share(found, test):.3f}")
    neighbours = Bm25(train, ["question"], 1)
    print(f"article of the nearest training question: {share(searcher(neighbours, 'article'), test):.3f}")
    print(f"any one article: {1 / len(articles):.3f}")


def searcher(index: Bm25, column: str) -> Callable[[str], list[str]]:
    return lambda question: [hit[column] for hit in index.search(question)]


if __name__ == "__main__":
    main()
