"""Engines: where completions come from.

To add one: write a file whose class satisfies :class:`mmc.engine.base.Engine`, a function that opens it from its block in
the spec, and put that into ``OPENERS``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmc.engine.base import Engine
from mmc.errors import needing

if TYPE_CHECKING:
    from mmc.spec.load import LoadedSpec

Opener = Callable[[Any, Callable[[str], Path], Mapping[str, Path]], Engine]


def _local(config: Any, resolve: Callable[[str], Path], adapters: Mapping[str, Path]) -> Engine:
    with needing("local", "a local model"):
        from mmc.engine.local import open_local
    return open_local(config, resolve, adapters)


def _litellm(config: Any, resolve: Callable[[str], Path], adapters: Mapping[str, Path]) -> Engine:
    from mmc.engine.litellm import open_litellm

    return open_litellm(config, adapters)


def _openai(config: Any, resolve: Callable[[str], Path], adapters: Mapping[str, Path]) -> Engine:
    from mmc.engine.openai import open_openai

    return open_openai(config, adapters)


OPENERS: Mapping[str, Opener] = {"local": _local, "litellm": _litellm, "openai": _openai}
"""The spec's ``type`` of a model -> a function of (its block, path resolver, adapters by name) that opens the engine."""


def open_engines(loaded: LoadedSpec, also: Sequence[str] = ()) -> dict[str, Engine]:
    """An engine for every model that a module uses and those in ``also``, with the adapters of that model's modules loaded.

    Models whose blocks are equal share one. Raises EnvironmentProblem when a model, an adapter or an extra is missing.
    """
    opened: dict[str, Engine] = {}
    engines = {}
    for name in dict.fromkeys([*(m.model for m in loaded.spec.modules.values()), *also]):
        block = loaded.spec.models[name].model_dump_json()
        if block not in opened:
            opened[block] = open_engine(loaded, name)
        engines[name] = opened[block]
    return engines


def open_engine(loaded: LoadedSpec, name: str) -> Engine:
    """The engine of the model ``name``, with the adapters of the modules that run on it or its equals loaded."""
    spec = loaded.spec
    config = spec.models[name]
    folders = {
        folder: loaded.resolve(folder)
        for module, folder in spec.adapters.items()
        if module in spec.modules and spec.models[spec.modules[module].model] == config
    }
    return OPENERS[config.type](config, loaded.resolve, folders)
