"""The examples that come with mmc, written out as somebody's own project.

They lie in the installed package, or beside it in a checkout.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import mmc
from mmc.build.program import spec_paths
from mmc.errors import UsageError
from mmc.spec import load, rewrite
from mmc.spec.load import LoadedSpec
from mmc.spec.marks import KeyPath
from mmc.spec.schema import schema_text
from mmc.spec.types import did_you_mean

EXAMPLES: Mapping[str, str] = {
    "helpdesk": "two modules and a search tool; data included",
    "banking77": "77 intents, one module; needs MMC_DATA",
    "banking77_retrieval": "77 intents by looking up similar queries; needs MMC_DATA",
    "hover": "many-hop search in a loop; needs MMC_DATA",
    "papillon": "a trusted and an untrusted model; needs MMC_DATA",
}
"""Name -> what it shows."""
SCHEMA = "mmc.schema.json"


def write_example(name: str, folder: Path) -> list[Path]:
    """Writes an example to ``folder``: ``NAME.yaml``, templates, data and the schema for editors; gives the files.

    Raises UsageError when there is no such example, or a file would be overwritten.
    """
    if name not in EXAMPLES:
        listed = "".join(f"\n  {key}: {text}" for key, text in EXAMPLES.items())
        raise UsageError(f"there is no example {name!r}.{did_you_mean(name, EXAMPLES)} There are:{listed}")
    loaded = load(_root() / "specs" / f"{name}.yaml")
    places, changes = _places(loaded)
    text = rewrite(loaded.text, changes)
    taken = [
        file
        for file in (folder / f"{name}.yaml", folder / SCHEMA, *(folder / p for p in places.values()))
        if file.exists()
    ]
    if taken:
        raise UsageError(f"{taken[0]} is there already; nothing was written (choose an empty folder)")
    written = [folder / f"{name}.yaml", folder / SCHEMA]
    folder.mkdir(parents=True, exist_ok=True)
    written[0].write_text(text, encoding="utf-8")
    written[1].write_text(schema_text(), encoding="utf-8")
    for source, place in places.items():
        target = folder / place
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
        written.append(target)
    return written


def _root() -> Path:
    package = Path(mmc.__file__).parent
    return package / "shipped" if (package / "shipped").is_dir() else package.parent


def _places(loaded: LoadedSpec) -> tuple[dict[Path, str], dict[KeyPath, object]]:
    """Every file of the example -> its place in the new folder, and the spec's paths changed to these."""
    places: dict[Path, str] = {}
    changes: dict[KeyPath, object] = {}
    for path, value in spec_paths(loaded.spec, templates=True):
        if value.startswith("../"):
            source = loaded.resolve(value)
            kind = "templates" if source.suffix == ".j2" else "data"
            places[source] = f"{kind}/{source.name}"
            changes[path] = places[source]
    return places, changes
