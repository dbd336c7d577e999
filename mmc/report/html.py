"""report.html: scores, curves, prompts before and after, wins and losses with their traces. No network, no script."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

Row = dict[str, Any]
SHOWN = 8
"""Examples shown of each kind."""


@dataclass(frozen=True)
class ReportJob:
    """What the page tells. Stages as in the manifest; prompts are (before, after) by module; traces as kept by a compile."""

    title: str
    build: Path
    stages: Sequence[Row]
    prompts: Mapping[str, tuple[str, str]]
    metrics: Sequence[Sequence[Row]]
    before: Sequence[Row]
    after: Sequence[Row]


def report_html(job: ReportJob) -> str:
    """The page. All text is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("mmc.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    start = {row["example"]: row for row in job.before}
    changed = [(start[row["example"]], row) for row in job.after if row["example"] in start]
    wins = [pair for pair in changed if pair[1]["reward"] > pair[0]["reward"]]
    losses = [pair for pair in changed if pair[1]["reward"] < pair[0]["reward"]]
    failures = [(None, row) for row in job.after if row["reward"] == 0]
    return environment.get_template("page.html.j2").render(
        job=job,
        prompts={name: words_changed(*pair) for name, pair in job.prompts.items()},
        curves=[curve([row["reward"] for row in rows]) for rows in job.metrics if len(rows) > 1],
        kinds=[
            ("Won since the start", len(wins), wins[:SHOWN]),
            ("Lost since the start", len(losses), losses[:SHOWN]),
            ("Scored 0 at the end", len(failures), failures[:SHOWN]),
        ],
    )


def words_changed(before: str, after: str) -> list[tuple[str, str]]:
    """The text in pieces: (same | added | removed, piece)."""
    old, new = re.findall(r"\s+|\S+", before), re.findall(r"\s+|\S+", after)
    pieces: list[tuple[str, str]] = []
    for kind, a, b, c, d in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if kind == "equal":
            pieces.append(("same", "".join(old[a:b])))
            continue
        pieces += [("removed", "".join(old[a:b]))] if b > a else []
        pieces += [("added", "".join(new[c:d]))] if d > c else []
    return pieces


def curve(values: Sequence[float], width: int = 640, height: int = 160) -> Mapping[str, Any]:
    """Points of a polyline for an SVG of ``width`` x ``height``, y from 0 to 1, and of its running mean over five."""
    smooth = [sum(values[max(0, i - 4) : i + 1]) / len(values[max(0, i - 4) : i + 1]) for i in range(len(values))]

    def points(series: Sequence[float]) -> str:
        step = width / max(1, len(series) - 1)
        return " ".join(f"{i * step:.1f},{height * (1 - min(1.0, max(0.0, v))):.1f}" for i, v in enumerate(series))

    return {
        "raw": points(values),
        "smooth": points(smooth),
        "width": width,
        "height": height,
        "steps": len(values),
        "first": smooth[min(4, len(smooth) - 1)],
        "last": smooth[-1],
    }
