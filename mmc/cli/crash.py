"""The log of an unexpected error."""

from __future__ import annotations

import platform
import shlex
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

import mmc


def write_crash_log(error: BaseException, arguments: Sequence[str]) -> Path:
    """Writes versions, command line and traceback below ``.mmc``; gives the file."""
    folder = Path(".mmc")
    folder.mkdir(exist_ok=True)
    file = folder / f"crash-{time.strftime('%Y%m%d-%H%M%S')}.log"
    head = f"mmc {mmc.__version__}, Python {platform.python_version()}, {platform.platform()}\nmmc {shlex.join(arguments)}\n\n"
    file.write_text(head + "".join(traceback.format_exception(error)), encoding="utf-8")
    return file
