"""The page of a build: what it tells, what it leaves out, how large it may be."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mmc.report import ReportJob, Story, report_html
from mmc.report.render import dollars, plain, spelled, totals_of


def stage(name: str, score: float, gain: float, kept: bool = True) -> dict[str, Any]:
    to_start = {"mean": gain, "low": gain - 0.1, "high": gain + 0.1}
    about = {"split": "test", "n": 12, "note": f"what {name} did", "failures": {"cut": 2}, "parts": {}}
    return {
        "stage": name,
        "score": score,
        "low": score - 0.1,
        "high": score + 0.1,
        "to_start": to_start,
        "kept": kept,
    } | about


def trace(example: int, reward: float, text: str = "an answer", **changes: Any) -> dict[str, Any]:
    call = {
        "module": "answer",
        "index": 0,
        "messages": [{"role": "user", "content": f"<b>question</b> {example} {text}"}],
    }
    call |= {"completion": text, "finish": "stop", "outputs": {"a": text}, "error": None}
    row = {
        "example": str(example),
        "reward": reward,
        "scores": {},
        "ending": "done",
        "error": None,
        "outputs": {"a": text},
    }
    tools = [{"tool": "search", "inputs": {"query": "words"}, "result": [{"title": "found"}], "error": None}]
    return row | {"calls": [call], "judged": [], "tools": tools} | changes


def usage(dollars: float | None = 0.0) -> dict[str, Any]:
    return {"calls": 10, "prompt_tokens": 1000, "completion_tokens": 50, "dollars": dollars}


TRIALS = [
    {"number": n, "what": f"candidate {n}", "rounds": 1, "tokens": 80.0, "rejected": rejected, "score": score}
    for n, rejected, score in [
        (0, "", {"mean": 0.2, "low": 0.1, "high": 0.3, "n": 12}),
        (1, "", {"mean": 0.6, "low": 0.4, "high": 0.8, "n": 12}),
        (2, "its text is too long", None),
    ]
]


@pytest.fixture
def job() -> ReportJob:
    rewards = [0.0] * 6 + [1.0] * 4 + [0.0] * 2
    ends = [1.0] * 6 + [0.0] + [1.0] * 3 + [0.0] * 2
    search = {"trials": TRIALS, "finalist": 1, "replaced": True, "note": "why"}
    metrics = [{"step": i, "reward": i / 10, "grad_norm": 1.0} for i in range(1, 7)]
    ledger = [
        {"stage": "start", "what": "scoring test", "seconds": 4.2, "modules": {"answer": usage(), "ask": usage(None)}},
        {"stage": "prompts", "what": "search", "seconds": None, "modules": None},
    ]
    return ReportJob(
        title="tiny v1",
        build=Path("build/tiny/v1"),
        manifest={
            "metric": "exact",
            "stages": [stage("start", 0.3, 0.0), stage("prompts", 0.4, 0.1), stage("weights", 0.5, 0.2, kept=False)],
            "ledger": ledger,
            "machine": {"processor": "a processor"},
        },
        lock={
            "seed": 7,
            "models": {"policy": {"source": "path:x", "revision": "abc"}, "other": {"source": "litellm:y"}},
            "data": {"test": {"rows": 12, "sha256": "0" * 64}},
            "versions": {"mmc": "1.2.3"},
        },
        inputs=["question"],
        prompts={"answer": ("Say it.", "Say it briefly."), "ask": ("Ask.", "Ask.")},
        stories=[Story("prompts", (), search), Story("weights", metrics)],
        before=[trace(i, r) for i, r in enumerate(rewards)],
        after=[trace(i, r) for i, r in enumerate(ends)],
    )


def text_of(page: str) -> str:
    return " ".join(re.sub(r"<[^>]+>", " ", page[page.index("</style>") :]).split())


def test_it_tells_what_happened(job: ReportJob) -> None:
    page = report_html(job)
    text = text_of(page)
    for told in (
        "From 0.300 to 0.500 on 12 test examples (+0.200, 95% interval +0.100 to +0.300)",
        "what weights did",
        "rolled back",
        "2 ended by a completion cut at the token limit",
        "candidate 1 winner",
        "candidate 2: its text is too long",
        "6 won, 1 lost, 5 the same",
        "Scored 0 before and after: 2",
        "ask: unchanged",
        "tool search: words",
        "a processor",
        "mmc 1.2.3",
        "mmc run build/tiny/v1 --input question=...",
        "mmc serve build/tiny/v1",
    ):
        assert told in text, told
    assert "<ins>" in page and page.count('<svg class="interval" role="img"') == 3 + 2 + 2
    assert 'aria-label="+0.200, 95% interval +0.100 to +0.300"' in page
    assert "polyline" in page and "Gradient norm" in page


def test_texts_are_escaped_and_nothing_comes_from_elsewhere(job: ReportJob) -> None:
    page = report_html(replace(job, title="<script>", after=[trace(0, 1.0, "<img src=x onerror=alert(1)>")]))
    assert "<script" not in page and "<img" not in page and "<b>question" not in page
    assert not re.search(r"(?:src|href)=[\"'](?!#)", page) and "url(" not in page and "@import" not in page


def test_tokens_are_shown_with_their_probabilities_as_far_as_there_is_room(job: ReportJob) -> None:
    told = trace(0, 1.0)
    told["calls"][0]["tokens"] = [{"token": "<b>", "logprob": -0.01}, {"token": " sure", "logprob": -3.0}] * 300
    page = report_html(replace(job, after=[told]))
    assert "600 tokens, the least likely sure with probability 0.050" in text_of(page)
    assert (
        page.count('<span class="d0" title="0.990">&lt;b&gt;</span><span class="d3" title="0.050"> sure</span>') == 200
    )
    assert "200 more. Underlined" in text_of(page)


def test_what_is_not_known_is_unknown(job: ReportJob) -> None:
    sums = totals_of(job.manifest["ledger"])
    assert sums == {"all modules": dict.fromkeys(usage(), None)}, "a search of unknown cost makes the sum unknown"
    known = totals_of(job.manifest["ledger"][:1])
    assert known["all modules"]["calls"] == 20 and known["all modules"]["dollars"] is None
    assert known["answer"]["dollars"] == 0.0 and known["ask"]["dollars"] is None
    assert (dollars(None), dollars(0.0), dollars(0.0123), dollars(12.5)) == ("unknown", "none", "$0.0123", "$12.50")
    assert (spelled(None), spelled(4.21), spelled(185), spelled(4800)) == (
        "unknown",
        "4.2 s",
        "3 min 05 s",
        "1 h 20 min",
    )
    page = text_of(report_html(job))
    assert "search unknown unknown unknown unknown unknown" in page and "$0" not in page
    assert "Tokens, cost and time Unknown." in text_of(
        report_html(replace(job, manifest={**job.manifest, "ledger": []}))
    )


def test_the_page_stays_small_whatever_the_runs_said(job: ReportJob) -> None:
    long = "word " * 50_000
    many = {"before": [trace(i, 0.0, long) for i in range(300)], "after": [trace(i, 1.0, long) for i in range(300)]}
    page = report_html(replace(job, **many))
    assert len(page) < 300_000 and "more characters" in page
    assert "Won since the start: 300" in text_of(page) and "8 of them are shown" in page


def test_data_is_shown_as_a_person_reads_it() -> None:
    assert (
        plain({"a": "text"}) == "text" and plain({"a": 1, "b": "é"}) == '{"a": 1, "b": "é"}' and plain(["x"]) == '["x"]'
    )
