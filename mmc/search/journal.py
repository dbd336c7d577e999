"""The journal of a search: every finished piece of work, one JSON line each, so that a killed search can resume.

A line is written once its work is done, and is on disk before the search goes on. A line that was being written when
the process died is dropped. No times are kept: a resumed search leaves the same bytes as one that was never killed.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmc.data import fingerprint
from mmc.errors import Diagnostic, InvalidError
from mmc.search.base import SearchJob, all_templates

VERSION = 1
_HASH = "sha256:"
Key = Sequence[Any]
"""Names a piece of work; plain JSON data."""


class Journal:
    """Remembers the results of finished work under their keys."""

    def __init__(self, path: Path, identity: Mapping[str, Any]) -> None:
        """Opens or begins the journal at ``path``.

        ``identity`` is everything the results depend on, by name. Raises InvalidError naming what differs when the
        journal was begun with another, and when a line before the last cannot be read.
        """
        self.path = path
        self._values: dict[str, Any] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = self._whole_lines()
        if not lines:
            self._write({"journal": VERSION, "identity": identity})
            return
        self._compare(lines[0], json.loads(json.dumps(identity)))
        for line in lines[1:]:
            self._values[_text(line["key"])] = line["value"]

    def once(self, key: Key, work: Callable[[], Any]) -> Any:
        """What ``work`` gave when it was done under this key, now or in an earlier process.

        The result is plain JSON data; it is read back from its JSON either way, so that both ways give the same.
        """
        name = _text(key)
        if name not in self._values:
            line = {"key": key, "value": work()}
            self._write(line)
            self._values[name] = json.loads(_text(line))["value"]
        return self._values[name]

    def __contains__(self, key: Key) -> bool:
        return _text(key) in self._values

    def _write(self, line: Mapping[str, Any]) -> None:
        with self.path.open("ab") as file:
            file.write(_text(line).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def _whole_lines(self) -> list[Any]:
        """All lines, after cutting off a torn last one."""
        if not self.path.exists():
            return []
        raw = self.path.read_bytes().splitlines(keepends=True)
        parsed: list[Any] = []
        for number, line in enumerate(raw, 1):
            try:
                if not line.endswith(b"\n"):
                    raise ValueError
                parsed.append(json.loads(line))
            except ValueError:
                if number < len(raw):
                    raise self._invalid(number, "this line of the journal cannot be read") from None
                os.truncate(self.path, sum(map(len, raw[:-1])))
        return parsed

    def _compare(self, header: Any, identity: Mapping[str, Any]) -> None:
        if not isinstance(header, dict) or header.get("journal") != VERSION:
            raise self._invalid(1, "this is not the journal of a search that this version can resume")
        known = header["identity"]
        changed = [_change(name, known, identity) for name in dict.fromkeys([*known, *identity])]
        changes = ", ".join(filter(None, changed))
        if changes:
            raise self._invalid(1, f"this journal belongs to another search; changed since: {changes}")

    def _invalid(self, line: int, message: str) -> InvalidError:
        hint = "remove the file to begin anew, or give the search a folder of its own"
        return InvalidError([Diagnostic(str(self.path), line, 0, message, hint)])


def _text(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


def _change(name: str, known: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    if name not in now:
        return f"{name} (gone)"
    if name not in known:
        return f"{name} (new)"
    if known[name] == now[name]:
        return ""
    if any(str(value).startswith(_HASH) for value in (known[name], now[name])):
        return name
    return f"{name} ({known[name]} -> {now[name]})"


def identity_of(job: SearchJob) -> dict[str, Any]:
    """Everything a search's outcome depends on, by the name a user knows it under."""
    spec = job.program.spec
    config = {f"compile.prompts.{name}": value for name, value in job.config.model_dump(mode="json").items()}
    parts: dict[str, Any] = {**config, "compile.seed": job.seed}
    for section in ("models", "tools", "modules"):
        for name, block in getattr(spec, section).items():
            parts[f"{section}.{name}"] = _sha256(block.model_dump_json(by_alias=True))
    parts["program"] = _sha256(spec.program.model_dump_json(by_alias=True))
    parts["metric"] = _sha256(spec.metric.model_dump_json(by_alias=True)) if spec.metric else None
    parts |= {f"{key} (its text)": _HASH + template.sha256 for key, template in all_templates(job.program).items()}
    parts |= {f"adapters.{name}": adapter for name, adapter in job.program.adapters.items()}
    if job.held_out:
        parts["data.test"] = _HASH + fingerprint(job.held_out)
    return parts | {"data.train": _HASH + fingerprint(job.train), "data.dev": _HASH + fingerprint(job.dev)}


def _sha256(text: str) -> str:
    return _HASH + hashlib.sha256(text.encode()).hexdigest()
