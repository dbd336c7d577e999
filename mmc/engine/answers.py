"""Greedy answers of remote models, kept on disk: the same question is paid for once.

Only what was asked at temperature 0 is kept. Rollouts and other draws are not: there the same request is to be answered anew.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import threading
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

from mmc.engine.base import Completion, Request
from mmc.errors import EnvironmentProblem

PLACE = Path(".mmc/answers.sqlite")
"""Below the folder that a command runs in, beside its runs."""


class Answers:
    """What one API answered so far. ``model`` tells it from all others: its name, address and settings."""

    def __init__(self, model: Mapping[str, object], place: Path | None = None) -> None:
        self._model, self._place = json.dumps(model, sort_keys=True), place or PLACE
        self._file: sqlite3.Connection | None = None
        self._lock = threading.Lock()

    def find(self, request: Request) -> Completion | None:
        """The answer that is kept, at no cost."""
        if request.sampling.temperature:
            return None
        with self._lock:
            row = self._open().execute("SELECT answer FROM answers WHERE question = ?", (self._question(request),))
            found = row.fetchone()
        if found is None:
            return None
        kept = json.loads(found[0])
        kept |= {name: tuple(value) for name, value in kept.items() if isinstance(value, list)}
        answer = Completion(**kept)
        return replace(answer, metadata={**answer.metadata, "cost": 0.0, "kept": True})

    def keep(self, request: Request, answer: Completion) -> None:
        """Keeps an answer that was paid for."""
        if request.sampling.temperature:
            return
        text = json.dumps(asdict(answer))
        with self._lock, self._open() as file:
            file.execute("INSERT OR REPLACE INTO answers VALUES (?, ?)", (self._question(request), text))

    def close(self) -> None:
        with self._lock:
            if self._file is not None:
                self._file.close()
                self._file = None

    def _open(self) -> sqlite3.Connection:
        if self._file is None:
            try:
                self._place.parent.mkdir(parents=True, exist_ok=True)
                self._file = sqlite3.connect(self._place, check_same_thread=False, timeout=60)
                self._file.execute("PRAGMA journal_mode = WAL")
                self._file.execute("PRAGMA synchronous = NORMAL")  # a power cut may cost the last answers, not the file
                self._file.execute(
                    "CREATE TABLE IF NOT EXISTS answers (question BLOB PRIMARY KEY, answer TEXT) WITHOUT ROWID"
                )
            except (OSError, sqlite3.Error) as error:
                raise EnvironmentProblem(
                    f"answers of remote models cannot be kept in {self._place}: {error}; set `cache: false` on the model"
                ) from error
        return self._file

    def _question(self, request: Request) -> bytes:
        asked = [
            self._model,
            [[m.role, m.content] for m in request.messages],
            request.sampling.max_tokens,
            repr(request.constraint),
            *(["logprobs"] if request.logprobs else []),
        ]
        return hashlib.blake2b(json.dumps(asked).encode(), digest_size=16).digest()
