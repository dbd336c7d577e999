"""Puts a Python file together: its head, what it needs, the program, and as much of the lower half as that uses."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

_SECTION = re.compile(r"^# --- (\w+) ---\n", re.MULTILINE)
_NEEDED_BY = {
    "jinja": r"\bjinja\(",
    "interpolated": r"\binterpolated\(",
    "true": r"\btrue\(",
    "options": r"\boptions\(|\bchosen\(",
    "fields": r"\bfields\(",
    "called": r"\bcalled\(",
    "bm25": r"\bBm25\(",
}
"""Section of the lower half -> what in the program needs it."""
_PACKAGES = {"bm25": ["bm25s", "numpy", "PyStemmer"]}


def assembled(head: str, parts: Sequence[str], inputs: Sequence[tuple[str, str]]) -> str:
    """The whole file. ``inputs``: names and types of what the program starts from."""
    program = "\n\n\n".join(part.strip("\n") for part in parts)
    sections = _sections()
    used = ["always", *(name for name, sign in _NEEDED_BY.items() if re.search(sign, program))]
    lower = "\n\n\n".join(sections[name].strip("\n") for name in used)
    body = "\n\n\n".join([program, "# --- how a model is asked and its answer is read ---\n\n" + lower, _main(inputs)])
    packages = ["httpx", "jinja2", *(package for name in used for package in _PACKAGES.get(name, []))]
    needs = "\n".join(f'#     "{package}",' for package in packages)
    script = f'# /// script\n# requires-python = ">=3.11"\n# dependencies = [\n{needs}\n# ]\n# ///'
    beginning = f'"""{head}\n"""\n\n{script}\n\nfrom __future__ import annotations'
    return f"{beginning}\n\n{_imports(sections['imports'], body)}\n\n{body}\n"


def _sections() -> dict[str, str]:
    """The parts of the lower half by name."""
    text = (Path(__file__).parent / "runtime.py").read_text(encoding="utf-8")
    _, *found = _SECTION.split(text)
    return dict(zip(found[::2], found[1::2], strict=True))


def _imports(block: str, body: str) -> str:
    """The imports whose names ``body`` uses, the standard library's first."""
    kept: list[str] = []
    lines = ["import argparse", "import os", *block.strip("\n").splitlines(), "from functools import cache"]
    for line in lines:
        if not line:
            continue
        start, _, names = (
            line.partition(" import ") if line.startswith("from ") else ("", "", line.removeprefix("import "))
        )
        used = [name for name in names.split(", ") if re.search(rf"\b{re.escape(name)}\b", body)]
        if used:
            kept.append(f"{start} import {', '.join(used)}".strip() if start else f"import {used[0]}")
    others = ("import httpx", "from jinja2")
    own = sorted((line for line in kept if not line.startswith(others)), key=lambda line: (line[0] == "f", line))
    rest = sorted((line for line in kept if line.startswith(others)), key=lambda line: (line[0] == "f", line))
    return "\n".join([*own, "", *rest])


def _main(inputs: Sequence[tuple[str, str]]) -> str:
    lines = [
        "def main() -> None:",
        "    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)",
    ]
    for name, kind in inputs:
        read = "" if kind == "str" else ", type=json.loads"
        note = kind if kind == "str" else f"{kind}, as JSON"
        lines.append(f'    parser.add_argument("--{name}", required=True{read}, help="{note}")')
    passed = ", ".join(f"given[{name!r}]" for name, _ in inputs)
    lines += [
        "    given = vars(parser.parse_args())",
        f"    print(json.dumps(run({passed}), ensure_ascii=False, default=str))",
    ]
    return "\n".join([*lines, "", "", 'if __name__ == "__main__":', "    main()"])
