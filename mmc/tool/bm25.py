"""Full-text search with BM25 (bm25s; k1 = 0.9, b = 0.4, English stemmer and stop words)."""

from __future__ import annotations

import copy
import sys
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from mmc.data import read_rows
from mmc.errors import InvalidError, ToolError
from mmc.spec.load import LoadedSpec
from mmc.spec.model import Bm25Tool


class Bm25:
    """Searches one corpus. Equal scores come in the corpus's order."""

    def __init__(self, rows: Sequence[Mapping[str, Any]], fields: Sequence[str], k: int) -> None:
        import Stemmer

        bm25s = _bm25s()

        self._rows, self._k = rows, min(k, len(rows))
        self._stemmer = Stemmer.Stemmer("english")
        self._index = bm25s.BM25(k1=0.9, b=0.4)
        texts = [" | ".join(str(row[field]) for field in fields) for row in rows]
        self._index.index(self._tokens(texts), show_progress=False)
        self._vocabulary = set(self._index.vocab_dict) - {""}

    def of_best(self, k: int) -> Bm25:
        """The same index; searches give ``k`` documents."""
        found = copy.copy(self)
        found._k = min(k, len(self._rows))
        return found

    def _tokens(self, texts: Sequence[str]) -> list[list[str]]:
        tokens = _bm25s().tokenize(
            list(texts), stopwords="en", stemmer=self._stemmer, return_ids=False, show_progress=False, allow_empty=False
        )
        return list(tokens)

    async def __call__(self, arguments: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The best documents for ``query``, each a row of the corpus plus ``score``; none for a query without known words."""
        if set(arguments) != {"query"}:
            raise ToolError(f"bm25 takes one argument, query; it got {sorted(arguments)}")
        return self.search(str(arguments["query"]))

    def search(self, query: str) -> list[dict[str, Any]]:
        import numpy as np

        known = [token for token in self._tokens([query])[0] if token in self._vocabulary]
        if not known:
            return []
        scores = self._index.get_scores(known)
        best = np.argsort(-scores, kind="stable")[: self._k]
        return [{**self._rows[i], "score": round(float(scores[i]), 4)} for i in best.tolist()]


def _bm25s() -> Any:
    """The library without JAX, which we have no use for: where it is installed, bm25s runs something on it when it is imported,
    and JAX then takes three quarters of a GPU's memory for itself.
    """
    if "bm25s" in sys.modules or "jax" in sys.modules:
        import bm25s
    else:
        sys.modules["jax"] = None  # type: ignore[assignment]  # what Python takes for "cannot be imported"
        try:
            import bm25s
        finally:
            del sys.modules["jax"]
    return bm25s


def open_bm25(loaded: LoadedSpec, name: str, config: Bm25Tool, trust: bool) -> Bm25:
    """The tool of a ``type: bm25`` block."""
    path = loaded.resolve(config.corpus)
    stat = path.stat() if path.is_file() else None
    stamp = (stat.st_mtime_ns, stat.st_size) if stat is not None else (0, 0)
    rows = _rows(path, stamp)
    if not rows:
        raise InvalidError([loaded.diagnostic(("tools", name, "corpus"), f"{config.corpus} has no documents")])
    for field in config.fields:
        if any(field not in row for row in rows):
            message = f"not every document of {config.corpus} has a column {field!r}"
            raise InvalidError([loaded.diagnostic(("tools", name), message, f"the first has: {', '.join(rows[0])}")])
    return _index(path, stamp, tuple(config.fields)).of_best(config.k)


@lru_cache(maxsize=4)
def _rows(path: Path, stamp: tuple[int, int]) -> tuple[dict[str, Any], ...]:
    """The documents of a file; ``stamp`` tells one state of it from another."""
    return read_rows(path)


@lru_cache(maxsize=4)
def _index(path: Path, stamp: tuple[int, int], fields: tuple[str, ...]) -> Bm25:
    """The index of a corpus, kept while it is asked for with other settings."""
    rows = _rows(path, stamp)
    return Bm25(rows, fields, len(rows))
