"""What this machine has, and what a spec would miss on it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import mmc
from mmc.errors import EnvironmentProblem
from mmc.program.check import check
from mmc.spec.env import REFERENCE, expand
from mmc.spec.load import LoadedSpec
from mmc.spec.model import LiteLlmModel, LocalModel, PythonTool, RemoteModel

Verdict = Literal["ok", "missing", "note"]
EXTRAS: Mapping[str, tuple[str, ...]] = {
    "local": ("torch", "transformers", "peft", "llguidance", "gguf", "safetensors", "psutil"),
    "remote": ("aiohttp", "litellm", "tenacity"),
    "search": ("optuna", "gepa"),
    "http": ("httpx", "tenacity"),
    "mcp": ("mcp",),
    "sandbox": ("pydantic-monty",),
    "serve": ("fastapi", "prometheus_client", "uvicorn"),
    "cluster": ("ray",),
    "data": ("datasets",),
    "track": ("tensorboard", "trackio", "wandb", "mlflow"),
}
"""Extra -> the packages it brings."""
LITTLE_DISK = 2 * 2**30
"""Free bytes below which a converted model may not fit."""


@dataclass(frozen=True)
class Symptom:
    """One thing looked at. missing: a spec needs it; note: worth knowing."""

    name: str
    verdict: Verdict
    detail: str


def doctor(loaded: LoadedSpec | None = None) -> list[Symptom]:
    """What is there; with a spec also whether its models, keys and files are. Nothing is downloaded."""
    found = [Symptom("mmc", "ok", f"{mmc.__version__}, Python {platform.python_version()}, {platform.platform()}")]
    found += _extras()
    found += _machine()
    return found if loaded is None else [*found, *_spec(loaded)]


def _extras() -> Iterator[Symptom]:
    for extra, packages in EXTRAS.items():
        versions = {package: _version(package) for package in packages}
        lacking = [package for package, version in versions.items() if version is None]
        if lacking:
            yield Symptom(f"mmc[{extra}]", "note", f"without {', '.join(lacking)}: pip install 'mmc[{extra}]'")
        else:
            yield Symptom(f"mmc[{extra}]", "ok", ", ".join(f"{p} {v}" for p, v in versions.items()))


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _machine() -> Iterator[Symptom]:
    if _version("torch") is not None and _version("psutil") is not None:
        import torch

        from mmc.engine.memory import free_bytes, total_bytes

        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        name = torch.cuda.get_device_name() if device.type == "cuda" else _processor(torch.get_num_threads())
        free, total = (round(size(device) / 2**30, 1) for size in (free_bytes, total_bytes))
        yield Symptom("device", "ok", f"{name}; {free:g} of {total:g} GiB of memory free")
        from mmc.engine.weights import cache_folder

        place = cache_folder()
        there = next(p for p in (place, *place.parents) if p.exists())
        left = shutil.disk_usage(there).free
        verdict: Verdict = "ok" if left >= LITTLE_DISK else "note"
        yield Symptom("cache", verdict, f"converted models in {place}; {left / 2**30:.0f} GiB of disk free")
    offline = os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0")
    if offline:
        yield Symptom("HF_HUB_OFFLINE", "note", "is set: models come from caches and packages alone")


def _processor(threads: int) -> str:
    import torch

    return f"CPU with {torch.backends.cpu.get_cpu_capability()}, {threads} threads"


def _spec(loaded: LoadedSpec) -> Iterator[Symptom]:
    used = {module.model for module in loaded.spec.modules.values()}
    for name, model in loaded.spec.models.items():
        if name in used:
            yield _local(loaded, name, model) if isinstance(model, LocalModel) else _remote(name, model)
    functions = [name for name, tool in loaded.spec.tools.items() if isinstance(tool, PythonTool)]
    if functions:
        yield Symptom("tools", "note", f"{', '.join(functions)} run Python of the spec's folder; that needs --trust")
    problems = [problem for problem in check(loaded) if problem.severity == "error"]
    count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
    first = f"{count}; see `mmc check`: {problems[0].message}" if problems else "no problem found"
    yield Symptom("spec", "missing" if problems else "ok", first)


def _local(loaded: LoadedSpec, name: str, model: LocalModel) -> Symptom:
    if _version("torch") is None:
        return Symptom(f"models.{name}", "missing", "a local model needs torch: pip install 'mmc[local]'")
    from mmc.engine.weights import find

    sources = [model.source] if isinstance(model.source, str) else model.source
    before = os.environ.get("HF_HUB_OFFLINE")
    os.environ["HF_HUB_OFFLINE"] = "1"  # looking must not download
    try:
        weights = find(sources, loaded.resolve)
    except EnvironmentProblem as error:
        online = any(source.startswith("hf:") for source in sources) and before in (None, "", "0")
        return Symptom(f"models.{name}", "note" if online else "missing", " ".join(str(error).split()))
    finally:
        if before is None:
            del os.environ["HF_HUB_OFFLINE"]
        else:
            os.environ["HF_HUB_OFFLINE"] = before
    return Symptom(f"models.{name}", "ok", f"{weights.source}, in {weights.folder}")


def _remote(name: str, model: RemoteModel) -> Symptom:
    needed = "litellm" if isinstance(model, LiteLlmModel) else "aiohttp"
    if _version(needed) is None:
        return Symptom(f"models.{name}", "missing", f"a remote model needs {needed}: pip install 'mmc[remote]'")
    for text in filter(None, (model.api_key, model.api_base)):
        if REFERENCE.search(text):
            try:
                expand(text)
            except EnvironmentProblem as error:
                return Symptom(f"models.{name}", "missing", str(error))
    return Symptom(f"models.{name}", "ok", f"{model.model}; whether it answers is not asked")
