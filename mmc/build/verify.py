"""Whether a build is still what its lock says: templates, adapters, and what it reads from elsewhere."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from mmc.build.lock import sha256_of
from mmc.data import fingerprint, load_split
from mmc.errors import Diagnostic, EnvironmentProblem, InvalidError
from mmc.prompt import Template
from mmc.spec import load
from mmc.spec.load import LoadedSpec
from mmc.spec.model import Bm25Tool

Verdict = Literal["ok", "changed", "missing", "unknown"]
WEIGHTS = ("adapter_model.safetensors", "model.safetensors")
"""The file of an adapter's folder whose hash is in the lock: an adapter's, or that of whole weights."""


@dataclass(frozen=True)
class Finding:
    """One thing that the lock pins. unknown: it cannot be looked at from here."""

    name: str
    verdict: Verdict
    detail: str = ""


def verify(folder: Path) -> list[Finding]:
    """Compares a build with its lock. Raises InvalidError when ``folder`` holds no build."""
    file = folder / "mmc.lock"
    if not file.is_file():
        message = "there is no mmc.lock here; verify takes a build folder"
        raise InvalidError([Diagnostic(str(folder), 0, 0, message)])
    lock: Mapping[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    loaded = load(folder)
    return [_compared(name, known, look) for name, known, look in _pinned(loaded, lock)] + list(_strange(loaded, lock))


def _pinned(loaded: LoadedSpec, lock: Mapping[str, Any]) -> Iterator[tuple[str, str, Callable[[], str]]]:
    """Name, hash in the lock, and how to find the hash now."""
    for module, known in lock["templates"].items():
        yield f"templates.{module}", known, partial(_template, loaded, module)
    for name, known in lock["adapters"].items():
        yield f"adapters.{name}", known, partial(_weights, loaded.folder / "adapters" / name)
    for tool, config in loaded.spec.tools.items():
        if isinstance(config, Bm25Tool):
            yield f"tools.{tool}.corpus", lock["corpora"].get(tool, ""), partial(_corpus, loaded, config.corpus)
    for split, rows in lock["data"].items():
        yield f"data.{split}", rows["sha256"], partial(_split, loaded, split)


def _compared(name: str, known: str, look: Callable[[], str]) -> Finding:
    try:
        now = look()
    except EnvironmentProblem as error:
        return Finding(name, "unknown", str(error).splitlines()[0])
    except (InvalidError, OSError, KeyError, StopIteration) as error:
        return Finding(name, "missing", str(error).splitlines()[0] if str(error) else "")
    if not known:
        return Finding(name, "unknown", "the lock does not name it")
    return Finding(name, "ok" if now == known else "changed")


def _strange(loaded: LoadedSpec, lock: Mapping[str, Any]) -> Iterator[Finding]:
    """Adapters the program uses that the lock does not know."""
    for module, folder in loaded.spec.adapters.items():
        if Path(folder).name not in lock["adapters"]:
            yield Finding(f"adapters.{Path(folder).name}", "changed", f"{module} uses it, but it is not in the lock")


def _template(loaded: LoadedSpec, module: str) -> str:
    return Template.load(loaded.resolve(loaded.spec.modules[module].template)).sha256


def _weights(folder: Path) -> str:
    return sha256_of(next(folder / name for name in WEIGHTS if (folder / name).is_file()))


def _corpus(loaded: LoadedSpec, name: str) -> str:
    return sha256_of(loaded.resolve(name))


def _split(loaded: LoadedSpec, split: Any) -> str:
    return fingerprint(load_split(loaded, split))
