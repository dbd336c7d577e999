"""Python functions that a spec names as ``package.module:function``."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mmc.errors import InvalidError, UsageError
from mmc.spec.load import LoadedSpec
from mmc.spec.marks import KeyPath


def require_trust(loaded: LoadedSpec, path: KeyPath, what: str, trust: bool) -> None:
    """Raises UsageError when the user did not say that a spec may run code."""
    if not trust:
        where = loaded.diagnostic(path, f"this spec runs {what}", "if you trust it, add --trust")
        raise UsageError(where.render())


def code_folder(loaded: LoadedSpec) -> Path:
    """Where a spec's code lies: its folder, or that of the spec a build was compiled from."""
    origin = loaded.spec.origin
    return (loaded.folder / origin.folder).resolve() if origin is not None else loaded.folder


def import_function(loaded: LoadedSpec, path: KeyPath, name: str, trust: bool) -> Callable[..., Any]:
    """The function; modules beside the spec are found too. Raises UsageError without trust, InvalidError when it isn't there."""
    require_trust(loaded, path, f"the Python function {name}", trust)
    module_name, _, function_name = name.partition(":")
    folder = str(code_folder(loaded))
    sys.path.insert(0, folder)
    try:
        found: Any = importlib.import_module(module_name)
        for part in function_name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise InvalidError([loaded.diagnostic(path, f"cannot import {name}: {error}")]) from error
    finally:
        sys.path.remove(folder)
    if not callable(found):
        raise InvalidError([loaded.diagnostic(path, f"{name} is not a function")])
    return found  # type: ignore[no-any-return]
