"""What the report and the viewer render with: one Jinja environment, one stylesheet, the same words for numbers."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from mmc.report.chart import scale_of

ENDINGS: Mapping[str, str] = {
    "done": "done",
    "unparsed": "ended by a completion that could not be read",
    "cut": "ended by a completion cut at the token limit",
    "tool_failed": "ended by a tool that failed",
    "limit": "ended by a limit of the program",
    "timeout": "ended by a time-out",
    "failed": "ended by a step that failed",
}


def environment(*packages: str) -> jinja2.Environment:
    """Escapes everything. Templates come from ``packages``, then from this one."""
    loaders = [jinja2.PackageLoader(package, ".") for package in (*packages, "mmc.report")]
    made = jinja2.Environment(
        loader=jinja2.ChoiceLoader(loaders),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "score": score,
        "gain": gain,
        "count": count,
        "dollars": dollars,
        "spelled": spelled,
        "plain": plain,
        "cut": cut,
        "short": short,
        "total": total,
        "unsure": unsure,
    }
    made.globals |= {"scale_of": scale_of, "totals_of": totals_of, "ENDINGS": ENDINGS}
    return made


def stylesheet() -> str:
    """The stylesheet of report and viewer."""
    return Path(__file__).with_name("style.css").read_text(encoding="utf-8")


DOUBT = (0.9, 0.5, 0.1)
"""Probabilities under which a token is marked, each more strongly than the one before."""


def unsure(tokens: Iterable[Mapping[str, Any]]) -> list[tuple[str, float, int]]:
    """Tokens of a trace with their probabilities, and how strongly each is to be marked: 0 to 3."""
    pairs = [(str(one["token"]), math.exp(one["logprob"])) for one in tokens]
    return [(text, chance, sum(chance < bound for bound in DOUBT)) for text, chance in pairs]


def score(value: float | None) -> str:
    """Such as 0.531."""
    return "unknown" if value is None else f"{value:.3f}"


def gain(value: float | None) -> str:
    """Such as +0.120, with a true minus sign."""
    return "unknown" if value is None else f"{value:+.3f}".replace("-", "\u2212")


def count(value: float | None) -> str:
    """Such as 1,234."""
    return "unknown" if value is None else f"{value:,.0f}"


def dollars(value: float | None) -> str:
    """What providers billed."""
    if value is None:
        return "unknown"
    return "none" if value == 0 else f"${value:.2f}" if value >= 1 else f"${value:.4f}"


def spelled(seconds: float | None) -> str:
    """Such as 4.2 s, 3 min 05 s, 1 h 20 min."""
    if seconds is None:
        return "unknown"
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def total(values: Iterable[float | None]) -> float | None:
    """Their sum; None when one is not known."""
    found = list(values)
    return None if None in found else sum(value for value in found if value is not None)


def totals_of(ledger: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Sums over a manifest's ledger: of all modules under that name, then of each; the first alone where a part is not known."""
    keys = ("calls", "prompt_tokens", "completion_tokens", "dollars")
    if any(work["modules"] is None for work in ledger):
        return {"all modules": dict.fromkeys(keys)}
    names = dict.fromkeys(name for work in ledger for name in work["modules"])
    rows = {name: [work["modules"][name] for work in ledger if name in work["modules"]] for name in names}
    every = {"all modules": [use for uses in rows.values() for use in uses], **rows}
    return {name: {key: total(use[key] for use in uses) for key in keys} for name, uses in every.items()}


def plain(value: Any) -> str:
    """Data as a person reads them: a text as it is, an object of one field as that field's."""
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping) and len(value) == 1:
        return plain(next(iter(value.values())))
    return json.dumps(value, ensure_ascii=False, default=str)


def cut(text: str, most: int) -> str:
    """At most ``most`` characters, and how many are missing."""
    return text if len(text) <= most else f"{text[:most]}\n[{len(text) - most:,} more characters]"


def short(text: str, most: int = 90) -> str:
    """One line of at most ``most`` characters."""
    line = " ".join(text.split())
    return line if len(line) <= most else line[: most - 1] + "\u2026"
