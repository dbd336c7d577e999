"""Python functions that a spec names as ``package.module:function``."""

from __future__ import annotations

import contextvars
import importlib
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
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


def started(function: Callable[..., Any], /, *values: Any, **named: Any) -> Future[Any]:
    """Calls ``function`` in a thread of its own; gives what it will give.

    The thread is a daemon's and serves this call alone: one that hangs takes no other call's place, and neither the end of a
    batch of runs nor that of the process waits for it.
    """
    future: Future[Any] = Future()
    future.set_running_or_notify_cancel()  # who stops waiting must not cancel what cannot be stopped
    context = contextvars.copy_context()

    def work() -> None:
        try:
            future.set_result(context.run(function, *values, **named))
        except SystemExit:
            future.set_exception(RuntimeError("the function called sys.exit"))
        except Exception as error:  # the user's code: handed to whoever waits
            future.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return future
