"""Data sets of the Hugging Face hub, and folders that are one, by the library `datasets` (extra ``data``).

No code of a data set is run: the library reads files of data alone. Rows become plain data: labels are their names, times texts;
columns of images, sound and their like are left out.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any

from mmc.errors import EnvironmentProblem, needing

LOCAL = (".", "/", "~", "${")
"""How the name of a folder begins; others are of the hub."""
_COMMIT = re.compile(r"[0-9a-f]{40}")


class NotThere(Exception):
    """The data set has no such configuration or split, or is none. ``key`` is the key of the spec that says otherwise."""

    def __init__(self, key: str, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.key, self.hint = key, hint


@dataclass(frozen=True)
class Loaded:
    """The rows of one split, and the commit they are from; None for a folder."""

    rows: tuple[dict[str, Any], ...]
    commit: str | None


@lru_cache(maxsize=32)
def load_hub(name: str, config: str | None, split: str, revision: str | None) -> Loaded:
    """Reads a split, from the cache of `datasets` where it is there already.

    Raises NotThere, and EnvironmentProblem when the library is missing or the hub cannot be reached.
    """
    with needing("data", "`dataset`"):
        import datasets
    if name.startswith(LOCAL) and not Path(name).is_dir():
        raise NotThere("dataset", "there is no such folder")
    try:
        with _quiet(datasets):
            builder = datasets.load_dataset_builder(name, config, revision=revision)
            builder.download_and_prepare()
            table = builder.as_dataset(split=split)
    except datasets.exceptions.DatasetNotFoundError as error:
        message = f"the hub has no such data set, or shows it to others alone: {_first_line(error)}"
        raise NotThere("dataset", message, "`hf auth login` for one that is private or gated") from None
    except ConnectionError as error:
        raise EnvironmentProblem(_unreachable(name, error)) from None
    except ValueError as error:
        key = "split" if "split" in str(error) else "config"
        raise NotThere(key, _first_line(error)) from None
    except datasets.exceptions.DatasetsError as error:
        raise NotThere("dataset", _first_line(error)) from None
    plain = [column for column, feature in table.features.items() if _is_plain(feature, datasets)]
    rows = tuple(
        {column: _plain(row[column], table.features[column], datasets) for column in plain}
        for row in table.select_columns(plain)
    )
    found = str(builder.hash or "")
    return Loaded(rows, found if not name.startswith(LOCAL) and _COMMIT.fullmatch(found) else None)


@contextmanager
def _quiet(library: Any) -> Iterator[None]:
    """Without the library's own progress bars, which would stand among ours."""
    silent = library.are_progress_bars_disabled()
    library.disable_progress_bars()
    try:
        yield
    finally:
        if not silent:
            library.enable_progress_bars()


def _unreachable(name: str, error: Exception) -> str:
    offline = [v for v in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE") if os.environ.get(v, "") not in ("", "0")]
    why = f"{' and '.join(offline)} is set" if offline else f"the hub gave: {_first_line(error)}"
    return (
        f"the data set {name} is not in the cache of `datasets`, and {why}. Load it once where there is a network (the cache is "
        f"`$HF_HOME/datasets`), or copy it with `hf download --repo-type dataset {name} --local-dir my_data` and write "
        "`dataset: ./my_data`"
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _is_plain(feature: Any, library: Any) -> bool:
    """Whether a column holds what JSON can: values, labels, and lists and objects of these."""
    if isinstance(feature, dict):
        return all(_is_plain(one, library) for one in feature.values())
    if isinstance(feature, library.List | library.LargeList):
        return _is_plain(feature.feature, library)
    return isinstance(feature, library.ClassLabel) or (
        isinstance(feature, library.Value) and "binary" not in feature.dtype
    )


def _plain(value: Any, feature: Any, library: Any) -> Any:
    if value is None:
        return None
    if isinstance(feature, dict):
        return {key: _plain(value[key], one, library) for key, one in feature.items()}
    if isinstance(feature, library.List | library.LargeList):
        return [_plain(one, feature.feature, library) for one in value]
    if isinstance(feature, library.ClassLabel):
        return feature.int2str(value) if value >= 0 else None
    return str(value) if isinstance(value, timedelta) else _text_of_time(value)


def _text_of_time(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime | date | time) else value
