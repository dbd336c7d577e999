"""Python functions that a spec names as ``package.module:function``."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any

from mmc.errors import InvalidError, UsageError
from mmc.spec.load import LoadedSpec
from mmc.spec.marks import KeyPath


def import_function(loaded: LoadedSpec, path: KeyPath, name: str, trust: bool) -> Callable[..., Any]:
    """The function; modules beside the spec are found too. Raises UsageError without trust, InvalidError when it isn't there."""
    if not trust:
        where = loaded.diagnostic(path, f"this spec runs the Python function {name}", "if you trust it, add --trust")
        raise UsageError(where.render())
    module_name, _, function_name = name.partition(":")
    origin = loaded.spec.origin
    folder = str((loaded.folder / origin.folder).resolve() if origin is not None else loaded.folder)
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
