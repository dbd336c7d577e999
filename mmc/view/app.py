"""The pages of the viewer. Every one is a GET that reads run folders as they are at that moment."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from fastapi import FastAPI, HTTPException, Request
from fastapi.middleware.trustedhost import TrustedHostMiddleware
from fastapi.responses import HTMLResponse, RedirectResponse, Response

from mmc.report.chart import charts_of
from mmc.report.render import environment, stylesheet
from mmc.view.groups import KINDS, REASONS, Filter, GroupSummary, group_page, summary
from mmc.view.lines import Files, Line, Row
from mmc.view.runs import Run, Stage, find_run, find_runs, when
from mmc.view.search import shown_search

HOSTS = ["localhost", "127.0.0.1"]
"""Names a browser may know this machine by. Any other means that a page from elsewhere is asking."""
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src data:; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
PAGE = 40
"""Groups, or traces, on one page."""
WHOLE = 10**9
"""No text is cut."""


def make_app(root: Path) -> FastAPI:
    """The viewer of the run or the runs in ``root``."""
    app = FastAPI(title="mmc view", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=HOSTS, www_redirect=False)

    @app.middleware("http")
    async def guarded(request: Request, answer: Callable[[Request], Awaitable[Response]]) -> Response:
        response = await answer(request)
        response.headers.update(HEADERS)
        return response

    pages = _Pages(root)
    for path, page in (
        ("/", pages.runs),
        ("/run/{run}", pages.run),
        ("/run/{run}/rollouts/{stage}", pages.groups),
        ("/run/{run}/rollouts/{stage}/{number}", pages.group),
        ("/run/{run}/traces/{name}", pages.traces),
        ("/run/{run}/traces/{name}/{number}", pages.trace),
    ):
        app.add_api_route(path, page, methods=["GET"], response_class=HTMLResponse)
    files = {
        "/style.css": (stylesheet() + _own("view.css"), "text/css"),
        "/live.js": (_own("live.js"), "text/javascript"),
    }
    for path, (text, kind) in files.items():
        app.add_api_route(path, _file(text, kind), methods=["GET"])
    return app


def _own(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def _file(text: str, kind: str) -> Callable[[], Response]:
    return lambda: Response(text, media_type=kind)


class _Pages:
    """Every method is a page."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self._templates = environment("mmc.view")
        self._templates.filters["when"] = when
        self._rows: Files[Row] = Files(dict)
        self._groups: Files[GroupSummary] = Files(summary)
        self._traces: Files[Row] = Files(_trace_summary)

    def _page(self, name: str, **values: Any) -> HTMLResponse:
        return HTMLResponse(self._templates.get_template(f"{name}.html.j2").render(**values))

    def runs(self) -> Response:
        found = find_runs(self.root)
        if len(found) == 1 and found[0].folder == self.root:
            return RedirectResponse(f"/run/{found[0].id}")
        return self._page("runs", runs=found, root=self.root)

    def run(self, run: str) -> Response:
        one = self._run(run)
        return self._page("run", run=one, stages=[self._stage(stage) for stage in one.stages()])

    def _stage(self, stage: Stage) -> Row:
        """What the run's page shows of a stage."""
        rows = [line.summary for line in self._rows[stage.folder / "training/metrics.jsonl"].all()]
        journal = self._rows[stage.folder / "search/journal.jsonl"]
        return {
            "stage": stage,
            "result": stage.result,
            "charts": charts_of(rows) if rows else [],
            "last": rows[-1] if rows else None,
            "search": shown_search(stage.result, journal) if stage.kind == "prompts" else None,
            "groups": len(self._groups[stage.folder / "training/rollouts.jsonl"].all()),
        }

    def groups(
        self,
        run: str,
        stage: str,
        step: str = "",
        module: str = "",
        example: str = "",
        kind: str = "",
        page: int = 1,
    ) -> Response:
        one = self._run(run)
        lines, chosen = (
            self._groups[self._of(one, stage).folder / "training/rollouts.jsonl"].all(),
            Filter(step, module, example.strip(), kind),
        )
        found = chosen.of(lines)
        return self._page(
            "groups",
            run=one,
            stage=self._of(one, stage),
            chosen=chosen,
            kinds={name: words for name, (words, _) in KINDS.items()},
            steps=sorted({line.summary.step for line in lines}, reverse=True),
            modules=list(dict.fromkeys(line.summary.module for line in lines)),
            examples=list(dict.fromkeys(line.summary.example for line in lines)),
            total=len(lines),
            REASONS=REASONS,
            **_paged(found, page, {"step": step, "module": module, "example": example, "kind": kind}),
        )

    def group(self, run: str, stage: str, number: int) -> Response:
        one = self._run(run)
        found = self._groups[self._of(one, stage).folder / "training/rollouts.jsonl"].row(number)
        if found is None:
            raise HTTPException(404, "there is no such group")
        return self._page("group", run=one, stage=self._of(one, stage), number=number, **group_page(found))

    def traces(self, run: str, name: str, score: str = "", page: int = 1) -> Response:
        one = self._run(run)
        scoring = self._scoring(one, name)
        lines = self._traces[one.folder / f"scores/{name}.jsonl"].all()
        found = [line for line in lines if score in ("", line.summary["band"])]
        return self._page(
            "traces", run=one, scoring=scoring, score=score, total=len(lines), **_paged(found, page, {"score": score})
        )

    def trace(self, run: str, name: str, number: int) -> Response:
        one = self._run(run)
        scoring = self._scoring(one, name)
        found = self._traces[one.folder / f"scores/{name}.jsonl"].row(number)
        if found is None:
            raise HTTPException(404, "there is no such trace")
        return self._page("trace", run=one, scoring=scoring, number=number, row=found, most=WHOLE)

    # --- what an address names; anything that was not found by looking is refused ---

    def _run(self, id_: str) -> Run:
        found = find_run(self.root, id_)
        if found is None:
            raise HTTPException(404, "there is no such run")
        return found

    def _of(self, run: Run, stage: str) -> Stage:
        found = next((one for one in run.stages() if one.id == stage), None)
        if found is None:
            raise HTTPException(404, "there is no such stage")
        return found

    def _scoring(self, run: Run, name: str) -> Row:
        found = next((one for one in run.scorings() if one["name"] == name), None)
        if found is None:
            raise HTTPException(404, "there is no such scoring")
        return found


def _trace_summary(row: Row) -> Row:
    """What the list shows of one scored example."""
    band = "0" if row["reward"] <= 0 else "1" if row["reward"] >= 1 else "between"
    return {**{key: row[key] for key in ("example", "reward", "ending", "outputs")}, "band": band}


def _paged(found: Sequence[Line[Any]], page: int, query: dict[str, str]) -> dict[str, Any]:
    """One page of a list, with the addresses of its neighbours."""
    last = max(1, -(-len(found) // PAGE))
    page = min(max(1, page), last)
    kept = {key: value for key, value in query.items() if value}

    def address(number: int) -> str | None:
        return "?" + urlencode({**kept, "page": str(number)}) if 1 <= number <= last else None

    return {
        "found": len(found),
        "lines": found[(page - 1) * PAGE : page * PAGE],
        "page": page,
        "pages": last,
        "newer": address(page - 1),
        "older": address(page + 1),
    }
