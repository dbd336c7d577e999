"""What every export starts from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from mmc.engine.weights import Weights, find
from mmc.errors import UsageError
from mmc.program.graph import Program
from mmc.spec.model import LocalModel


@dataclass(frozen=True)
class ExportJob:
    """A build's program and the folder it goes to."""

    program: Program
    out: Path
    examples: int = 8
    """How many examples of the dev split a smoke test asks about."""

    @cached_property
    def modules(self) -> Mapping[str, tuple[str, ...]]:
        """Every local model in use -> its modules. Raises UsageError when there is none."""
        spec = self.program.spec
        found: dict[str, list[str]] = {}
        for name, module in spec.modules.items():
            if isinstance(spec.models[module.model], LocalModel):
                found.setdefault(module.model, []).append(name)
        if not found:
            raise UsageError("no module of this program runs on a local model, so there are no weights to export")
        return {model: tuple(names) for model, names in found.items()}

    def weights(self, model: str) -> Weights:
        """Where the base weights of a local model are. Raises EnvironmentProblem when nowhere."""
        config = self.program.spec.models[model]
        assert isinstance(config, LocalModel)
        sources = [config.source] if isinstance(config.source, str) else config.source
        return find(sources, self.program.loaded.resolve)

    def adapters(self, model: str) -> dict[str, Path]:
        """Module -> folder of what it runs with, of the modules on ``model`` that have something."""
        spec = self.program.spec
        names = (name for name in self.modules[model] if name in spec.adapters)
        return {name: self.program.loaded.resolve(spec.adapters[name]) for name in names}

    def place(self, name: str, of: int) -> Path:
        """The folder for one of ``of`` parts: the whole one when it is the only part."""
        return self.out if of == 1 else self.out / name


def is_lora(folder: Path) -> bool:
    """Whether a folder holds an adapter, not whole weights."""
    return (folder / "adapter_config.json").is_file()
