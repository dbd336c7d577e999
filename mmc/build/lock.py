"""mmc.lock: what exactly went in."""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmc.data import Example, commit_of, fingerprint
from mmc.program.graph import Program
from mmc.spec.model import Bm25Tool, RemoteModel

PACKAGES = (
    "mmc",
    "torch",
    "transformers",
    "peft",
    "tokenizers",
    "safetensors",
    "llguidance",
    "aiohttp",
    "litellm",
    "optuna",
    "gepa",
    "jinja2",
    "pydantic",
    "bm25s",
    "datasets",
)


def make_lock(program: Program, data: Mapping[str, Sequence[Example]], adapters: Mapping[str, str]) -> dict[str, Any]:
    """Hashes and revisions. ``adapters``: name -> SHA-256 of its weights."""
    loaded = program.loaded
    corpora = {
        name: sha256_of(loaded.resolve(tool.corpus))
        for name, tool in loaded.spec.tools.items()
        if isinstance(tool, Bm25Tool)
    }
    return {
        "lock_version": 1,
        "spec": loaded.sha256,
        "seed": loaded.spec.compile.seed,
        "models": {name: _model(program, name) for name in loaded.spec.models},
        "templates": {name: template.sha256 for name, template in program.templates.items()},
        "data": {split: _data(program, split, rows) for split, rows in data.items()},
        "corpora": corpora,
        "adapters": dict(adapters),
        "versions": {"python": platform.python_version(), **_versions()},
    }


def _data(program: Program, split: str, rows: Sequence[Example]) -> dict[str, Any]:
    """What a split held, and the commit of the data set on the hub that it is from."""
    source = getattr(program.spec.data, split)
    commit = commit_of(program.loaded, source)
    pinned = {} if commit is None else {"dataset": source.dataset, "revision": commit}
    return {"sha256": fingerprint(rows), "rows": len(rows), **pinned}


def _model(program: Program, name: str) -> dict[str, str]:
    """Which source was used, and its revision or hash; a model no module uses was not looked for."""
    from mmc.engine.weights import find

    config = program.spec.models[name]
    if all(module.model != name for module in program.spec.modules.values()):
        return {"source": "unused"}
    if isinstance(config, RemoteModel):
        return {"source": f"{config.type}:{config.model}"}
    sources = [config.source] if isinstance(config.source, str) else config.source
    weights = find(sources, program.loaded.resolve)
    return {"source": weights.source, "revision": weights.revision}


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def sha256_of(file: Path) -> str:
    """SHA-256 of a file's bytes."""
    found = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(1 << 22):
            found.update(chunk)
    return found.hexdigest()
