"""Arguments and options that several commands share."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmc.errors import UsageError

if TYPE_CHECKING:
    from mmc.data import SplitName
    from mmc.spec import LoadedSpec


def complete_spec(incomplete: str) -> list[str]:
    """Specs and builds that a path may become, and the folders on the way."""
    head, _, tail = incomplete.rpartition("/")
    folder = Path(f"{head}/" if "/" in incomplete else ".").expanduser()
    found = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        whole = f"{head}/{path.name}" if "/" in incomplete else path.name
        if not path.name.startswith(tail) or (path.name.startswith(".") and not tail):
            continue
        if path.is_dir():
            found.append(whole if (path / "program.yaml").is_file() else f"{whole}/")
        elif path.suffix in (".yaml", ".yml"):
            found.append(whole)
    return found


def complete_split(incomplete: str) -> list[str]:
    return [name for name in ("train", "dev", "test") if name.startswith(incomplete)]


SpecArgument = Annotated[
    Path, typer.Argument(metavar="SPEC", help="A spec file, or a build folder.", autocompletion=complete_spec)
]
SetOption = Annotated[
    list[str], typer.Option("--set", metavar="A.B=VALUE", help="Override a key of the spec; may be repeated.")
]
TrustOption = Annotated[bool, typer.Option("--trust", help="Allow the spec's Python functions to run.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else.")]
InputOption = Annotated[
    list[str], typer.Option("--input", "-i", metavar="NAME=VALUE", help="An input; values are read as YAML.")
]


def warn(loaded: LoadedSpec) -> None:
    """Prints what `mmc check` would warn of, before work that takes long begins."""
    from mmc.program.check import check

    for problem in check(loaded):
        if problem.severity == "warning":
            print(problem.render(), file=sys.stderr)


def read_inputs(pairs: list[str], texts: frozenset[str] = frozenset()) -> dict[str, Any]:
    """``name=value`` pairs as data. Inputs named in ``texts`` are taken as they are. Raises UsageError."""
    from mmc.spec.marks import parse

    found: dict[str, Any] = {}
    for pair in pairs:
        name, sign, value = pair.partition("=")
        if not sign:
            raise UsageError(f"--input {pair}: write it as NAME=VALUE")
        found[name] = value if name in texts else parse(f"value: {value or '~'}", f"--input {name}").data["value"]
    return found


def split_name(text: str) -> SplitName:
    """The name of a split. Raises UsageError."""
    match text:
        case "train" | "dev" | "test":
            return text
    raise UsageError(f"--split {text}: there are train, dev and test")


def print_json(value: Any) -> None:
    """One JSON document on stdout."""
    print(json.dumps(value, ensure_ascii=False, default=str))


def counted(number: int, noun: str) -> str:
    """Such as ``1 error`` or ``2 errors``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
