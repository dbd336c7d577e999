"""mmc diff: what differs between two specs or builds."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmc.cli.common import JsonOption, complete_spec, print_json

if TYPE_CHECKING:
    from mmc.build.diff import Difference, Piece

Place = Annotated[Path, typer.Argument(help="A spec file, or a build folder.", autocompletion=complete_spec)]
STYLES = {"added": "green", "removed": "red"}


def diff_command(before: Place, after: Place, json_: JsonOption = False) -> None:
    """Say what differs between two specs or builds.

    Keys, words of prompts, scores on the same examples, adapters.
    """
    from mmc.build.diff import diff

    found = diff(before, after)
    if json_:
        print_json(asdict(found))
        return
    if found.nothing:
        print("no difference")
        return
    _print(found)


def _print(found: Difference) -> None:
    from rich.console import Console
    from rich.text import Text

    # Not broken into lines of a terminal's width when it is read by another program.
    out = Console(highlight=False, soft_wrap=True)
    for change in found.keys:
        out.print(Text(f"{change.key}: {_value(change.before)} -> {_value(change.after)}"))
    for prompt in found.prompts:
        for slot, pieces in prompt.slots.items():
            place = f"slot {slot}" if slot else "outside of its slots"
            out.print(Text(f"\nprompt of {prompt.module}, {place}:", style="bold"))
            out.print(_marked(pieces))
    if found.adapters:
        out.print()
    for change in found.adapters:
        out.print(Text(f"adapter of {change.key}: {_adapter(change.before)} -> {_adapter(change.after)}"))
    if found.scores is not None:
        score, gain = found.scores, found.scores.gain
        what = "score, from the build's own start" if score.own_start else "score"
        line = f"\n{what}: {score.before:.3f} -> {score.after:.3f}"
        if gain is None:
            line += " (not on the same examples)"
        else:
            line += f", gain {gain.mean:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}] on the same {gain.n} examples"
            line += f"; {len(score.won)} score higher, {len(score.lost)} lower"
        out.print(Text(line))


def _marked(pieces: tuple[Piece, ...]) -> Any:
    """The words, new ones as {+...+} and old ones as [-...-], as `git diff --word-diff` writes them."""
    from rich.text import Text

    marks = {"added": ("{+", "+}"), "removed": ("[-", "-]"), "same": ("", "")}
    text = Text()
    for kind, piece in pieces:
        left, right = marks[kind]
        text.append(f"{left}{piece}{right}", style=STYLES.get(kind))
    return text


def _adapter(value: Any) -> str:
    """An adapter in few words; --json has the whole hash."""
    if not isinstance(value, dict):
        return _value(value)
    return ", ".join(f"{key} {str(one)[:12]}" for key, one in value.items() if one is not None)


def _value(value: Any) -> str:
    return "nothing" if value is None else json.dumps(value, ensure_ascii=False)
