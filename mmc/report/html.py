"""report.html: scores, curves, prompts before and after, wins and losses with their traces. No network, no script."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from mmc.report.chart import Chart, charts_of
from mmc.report.render import environment, gain, score, stylesheet

Row = dict[str, Any]
SHOWN = 8
"""Examples shown of each kind."""
TEXT = 1500
"""Most characters shown of one text of a trace."""


@dataclass(frozen=True)
class Story:
    """How one stage went: the curves of a training, or the result of a search (its ``result.json``)."""

    stage: str
    metrics: Sequence[Row] = ()
    search: Row | None = None

    @property
    def charts(self) -> list[Chart]:
        """Empty for less than two steps: a curve needs two."""
        return charts_of(self.metrics) if len(self.metrics) > 1 else []


@dataclass(frozen=True)
class ReportJob:
    """What the page tells. Manifest and lock as in the build; prompts are (before, after) by module; traces as kept by a
    compile; ``inputs`` are the names of the program's.
    """

    title: str
    build: Path
    manifest: Row
    lock: Row
    inputs: Sequence[str]
    prompts: Mapping[str, tuple[str, str]]
    stories: Sequence[Story]
    before: Sequence[Row]
    after: Sequence[Row]


def report_html(job: ReportJob) -> str:
    """The page. All text is escaped."""
    start = {row["example"]: row for row in job.before}
    pairs = [(start[row["example"]], row) for row in job.after if row["example"] in start]
    won = [pair for pair in pairs if pair[1]["reward"] > pair[0]["reward"]]
    lost = [pair for pair in pairs if pair[1]["reward"] < pair[0]["reward"]]
    failed = [pair for pair in pairs if pair[1]["reward"] == 0 and pair not in lost]
    page = environment("mmc.report").get_template("page.html.j2")
    return page.render(
        job=job,
        style=Markup(stylesheet()),
        first=job.manifest["stages"][0],
        headline=headline(job.manifest["stages"]),
        stories=[story for story in job.stories if story.charts or (story.search or {}).get("trials")],
        prompts={name: words_changed(*pair) for name, pair in job.prompts.items()},
        most=TEXT,
        won=len(won),
        lost=len(lost),
        same=len(pairs) - len(won) - len(lost),
        kinds=[
            ("Won since the start", "won", len(won), won[:SHOWN]),
            ("Lost since the start", "lost", len(lost), lost[:SHOWN]),
            ("Scored 0 before and after", "failed", len(failed), failed[:SHOWN]),
        ],
    )


def headline(stages: Sequence[Row]) -> str:
    """The outcome in a sentence."""
    first, last = stages[0], stages[-1]
    if len(stages) == 1:
        return f"Scores {score(first['score'])}; no stage was run."
    found = last["to_start"]
    span = f"{gain(found['mean'])}, 95% interval {gain(found['low'])} to {gain(found['high'])}"
    return f"From {score(first['score'])} to {score(last['score'])} on {first['n']} {first['split']} examples ({span})."


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
