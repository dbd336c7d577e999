"""What a model behind an API cannot do, said before it is asked."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from mmc.errors import Diagnostic
from mmc.program.outputs import format_of
from mmc.spec.env import REFERENCE
from mmc.spec.load import LoadedSpec
from mmc.spec.model import Module, OpenAiModel, RemoteModel


def remote_problems(loaded: LoadedSpec) -> list[Diagnostic]:
    """Keys that stand in the spec, and modules that ask a remote model for what it cannot do."""
    return [*_keys(loaded), *_modules(loaded)]


def _remote(loaded: LoadedSpec) -> dict[str, RemoteModel]:
    return {name: model for name, model in loaded.spec.models.items() if isinstance(model, RemoteModel)}


def _keys(loaded: LoadedSpec) -> Iterator[Diagnostic]:
    for name, model in _remote(loaded).items():
        if model.api_key is not None and not REFERENCE.fullmatch(model.api_key):
            place = loaded.diagnostic(
                ("models", name, "api_key"),
                "a key does not belong in a file",
                "put it into an environment variable and write ${env:NAME}",
            )
            yield replace(place, source="")  # the line would show the key


def _modules(loaded: LoadedSpec) -> Iterator[Diagnostic]:
    remote = _remote(loaded)
    for name, module in loaded.spec.modules.items():
        model = remote.get(module.model)
        if model is None:
            continue
        if module.constrain and not _can_constrain(model, module):
            yield loaded.diagnostic(
                ("modules", name, "constrain"),
                f"a `type: {model.type}` model is constrained to JSON alone",
                "set `format: json`, or use a `type: local` model",
            )
        if name in loaded.spec.adapters:
            yield loaded.diagnostic(("adapters", name), "adapters need a `type: local` model")


def _can_constrain(model: RemoteModel, module: Module) -> bool:
    return format_of(module) == "json" or (isinstance(model, OpenAiModel) and model.structured == "vllm")
