from __future__ import annotations

import asyncio
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mmc.errors import ToolError
from mmc.tool.bm25 import Bm25

ROWS = [
    {"id": "a", "title": "Pumps", "text": "A pump hums. Pumps are loud."},
    {"id": "b", "title": "Lamps", "text": "A lamp is bright and loud."},
    {"id": "c", "title": "Leaves", "text": "Leaves turn yellow."},
    {"id": "d", "title": "Leaves", "text": "Leaves turn yellow."},
]


def test_the_best_document_comes_first_and_ties_keep_the_corpus_order() -> None:
    index = Bm25(ROWS, ["title", "text"], 4)
    assert next(hit["id"] for hit in index.search("the pump is humming")) == "a"
    assert [hit["id"] for hit in index.search("yellow leaf")][:2] == ["c", "d"]
    assert index.search("loud")[0]["score"] > 0


def test_scores_equal_the_formula() -> None:
    """Robertson's BM25 as bm25s has it: idf = ln(1 + (N - n + 0.5) / (n + 0.5)), k1 = 0.9, b = 0.4."""
    rows = [{"t": "apple banana apple"}, {"t": "banana cherry"}, {"t": "cherry date elder fig"}]
    hit = Bm25(rows, ["t"], 1).search("apple")[0]
    length = 3 / ((3 + 2 + 4) / 3)
    expected = math.log(1 + 2.5 / 1.5) * 2 / (2 + 0.9 * (1 - 0.4 + 0.4 * length))
    assert hit["score"] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("query", ["", "the of and", "zzz qqq"])
def test_a_query_without_known_words_finds_nothing(query: str) -> None:
    assert Bm25(ROWS, ["title", "text"], 2).search(query) == []


def test_wrong_arguments_are_a_tool_error() -> None:
    with pytest.raises(ToolError, match="one argument, query"):
        asyncio.run(Bm25(ROWS, ["text"], 2)({"text": "x"}))


def test_jax_is_left_alone_where_it_is_installed(tmp_path: Path) -> None:
    """It would take most of a GPU's memory. Our own code may still use it."""
    (tmp_path / "jax").mkdir()
    (tmp_path / "jax/__init__.py").write_text("print('jax was imported')")
    (tmp_path / "jax/lax.py").write_text("def top_k(values, k): print('and used')")
    script = (
        "from mmc.tool.bm25 import Bm25\n"
        "tool = Bm25([{'text': 'a red ship'}, {'text': 'a blue car'}], ['text'], 1)\n"
        "print(tool.search('ships')[0]['text'])\n"
        "import jax"
    )
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == ["a red ship", "jax was imported"]
