"""Finds a local model's weights: the first of its sources that is there, converted once and kept in the user's cache.

Sources: ``hf:OWNER/NAME[@REVISION]`` (Hugging Face's cache, then the hub), ``path:DIR`` (a folder that transformers can load),
``package:PACKAGE/FILE.gguf`` (a GGUF file inside an installed Python package).
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmc.engine.memory import keep_freed_memory
from mmc.errors import EnvironmentProblem
from mmc.files import new_folder

if TYPE_CHECKING:
    from collections.abc import Iterator

CONVERTED = 1
"""Version of the conversion; part of the cached copy's name."""


@dataclass(frozen=True)
class Weights:
    """Weights that are there: a folder transformers can load, the source it came from, and what pins it."""

    folder: Path
    source: str
    revision: str


def find(sources: Sequence[str], resolve: Callable[[str], Path]) -> Weights:
    """The first of ``sources`` that is there. Raises EnvironmentProblem with what was tried and why each failed.

    ``resolve`` turns a relative path of the spec into an absolute one.
    """
    failures = []
    for source in sources:
        kind, _, rest = source.partition(":")
        finder = FINDERS.get(kind)
        if finder is None:
            failures.append(f"{source}: unknown kind of source; known are {', '.join(sorted(FINDERS))}")
            continue
        try:
            folder, revision = finder(rest, resolve)
        except EnvironmentProblem as error:
            failures.append(f"{source}: {error}")
        else:
            return Weights(folder, source, revision)
    raise EnvironmentProblem("no source of the model is there:\n" + "\n".join(f"  - {f}" for f in failures))


def _from_path(rest: str, resolve: Callable[[str], Path]) -> tuple[Path, str]:
    folder = resolve(rest)
    if not (folder / "config.json").is_file():
        raise EnvironmentProblem(f"{folder} has no config.json; it should be a folder that transformers can load")
    files = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))
    return folder, _digest([folder / "config.json", *files])


def _from_hub(rest: str, resolve: Callable[[str], Path]) -> tuple[Path, str]:
    from huggingface_hub import snapshot_download

    name, _, revision = rest.partition("@")
    wanted = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]
    try:
        folder = Path(snapshot_download(name, revision=revision or None, allow_patterns=wanted, local_files_only=True))
    except (OSError, ValueError):
        folder = _download(name, revision, wanted)
    if not (folder / "config.json").is_file():
        raise EnvironmentProblem("its copy in Hugging Face's cache is incomplete")
    return folder, folder.name


def _download(name: str, revision: str, wanted: list[str]) -> Path:
    import httpx
    from huggingface_hub import snapshot_download

    if os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0"):
        raise EnvironmentProblem("not in Hugging Face's cache, and HF_HUB_OFFLINE is set")
    try:
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=wanted, etag_timeout=5))
    except (OSError, ValueError, httpx.HTTPError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise EnvironmentProblem(f"not in Hugging Face's cache, and the hub gave: {reason[:200]}") from error


def _from_package(rest: str, resolve: Callable[[str], Path]) -> tuple[Path, str]:
    package, _, name = rest.partition("/")
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise EnvironmentProblem(f"the Python package {package} is not installed")
    file = Path(next(iter(spec.submodule_search_locations))) / name
    if not file.is_file():
        raise EnvironmentProblem(f"the Python package {package} has no file {name}")
    if file.suffix != ".gguf":
        raise EnvironmentProblem(f"{name} is not a GGUF file")
    folder, digest = converted(file)
    if not folder.is_dir():
        _convert(file, folder)
    return folder, digest


FINDERS: Mapping[str, Callable[[str, Callable[[str], Path]], tuple[Path, str]]] = {
    "hf": _from_hub,
    "path": _from_path,
    "package": _from_package,
}
"""Kind of source -> a function that gives (folder, revision) or raises EnvironmentProblem. Add one here."""


def converted(file: Path) -> tuple[Path, str]:
    """Where the converted copy of a GGUF file is, or will be, and the file's digest."""
    digest = _digest([file])
    return cache_folder() / f"{file.stem}-{digest[:12]}-v{CONVERTED}", digest


def cache_folder() -> Path:
    """Where converted models are kept: MMC_CACHE, or the user's cache folder."""
    import platformdirs

    return Path(os.environ.get("MMC_CACHE") or platformdirs.user_cache_dir("mmc")) / "models"


def _convert(file: Path, folder: Path) -> None:
    """Converts a GGUF file into a folder transformers loads fast; the folder appears only when it is whole."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        with new_folder(folder) as new, quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
            model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
            # The weights are plain float32 by now; transformers would refuse to save them as GGUF.
            if hasattr(model.config, "quantization_config"):
                del model.config.quantization_config
            model.hf_quantizer = None
            model.save_pretrained(new)
            tokenizer.save_pretrained(new)
    except OSError:
        if not folder.is_dir():  # otherwise another process was faster
            raise


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keeps transformers' progress bars and advice off the terminal."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        logging.enable_progress_bar()


def _digest(files: Sequence[Path]) -> str:
    """SHA-256 over the names and contents of ``files``."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.name.encode())
        with file.open("rb") as stream:
            while chunk := stream.read(1 << 22):
                digest.update(chunk)
    return digest.hexdigest()


def load(weights: Weights, dtype: str) -> tuple[Any, Any]:
    """(model, tokenizer) of ``weights`` on the best device there is; ``dtype`` as in the spec."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    keep_freed_memory()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if dtype == "auto":
        dtype = "bfloat16" if device == "cuda" else "float32"
    with quiet_transformers():
        tokenizer = AutoTokenizer.from_pretrained(weights.folder)
        model = AutoModelForCausalLM.from_pretrained(weights.folder, dtype=getattr(torch, dtype))
    return model.to(device).eval(), tokenizer
