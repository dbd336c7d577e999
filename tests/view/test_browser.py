"""The viewer and the report in a real browser: nothing leaves the machine, every width and colour, the keyboard, live updates."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect

pytestmark = pytest.mark.browser
WIDTHS = {"phone": 375, "laptop": 1280}
WAIT = 15_000
"""Milliseconds a page may take to show something on a busy machine."""
CONTRAST = """() => {
  const light = c => { const [r, g, b] = c.map(v => v / 255).map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
                       return 0.2126 * r + 0.7152 * g + 0.0722 * b };
  const rgb = text => text.match(/[\\d.]+/g).map(Number);
  const under = e => { for (; e; e = e.parentElement) { const c = rgb(getComputedStyle(e).backgroundColor);
                       if (c.length < 4 || c[3] > 0) return c.slice(0, 3) } return [255, 255, 255] };
  return [...document.querySelectorAll('body *')].filter(e => [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim()))
    .filter(e => e.checkVisibility() && !e.closest('svg'))
    .map(e => { const [a, b] = [light(rgb(getComputedStyle(e).color)), light(under(e))];
                return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), e.textContent.trim().slice(0, 40)] })
    .filter(([ratio]) => ratio < 4.5) }"""
WIDER = """() => [...document.querySelectorAll('body *')].filter(e => !e.closest('.wide, .skip, thead'))
  .filter(e => e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 80))"""
HEADINGS = (
    "[...document.querySelectorAll('h1,h2,h3,h4')].filter(e => e.checkVisibility()).map(e => Number(e.tagName[1]))"
)


@dataclass
class Watched:
    """A page, and what went wrong on it."""

    page: Any
    wrong: list[str] = field(default_factory=list)

    def watch(self) -> Watched:
        self.page.on("console", lambda m: self.wrong.append(m.text) if m.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("request", self._request)
        return self

    def _request(self, request: Any) -> None:
        if not request.url.startswith(("http://127.0.0.1:", "file://", "data:,")):
            self.wrong.append(f"a request to {request.url}")


@pytest.fixture
def opened(chromium: Any) -> Iterator[Callable[..., Watched]]:
    contexts = []

    def open_(address: str, width: int = 1280, **options: Any) -> Watched:
        contexts.append(chromium.new_context(viewport={"width": width, "height": 800}, **options))
        page = contexts[-1].new_page()
        page.set_default_timeout(WAIT)
        watched = Watched(page).watch()
        page.goto(address)
        return watched

    yield open_
    for context in contexts:
        context.close()


def addresses(run: Path) -> list[str]:
    scoring = next((run / "scores").glob("*.jsonl")).stem
    home = f"/run/{run.name}"
    rollouts = f"{home}/rollouts/2-weights"
    return ["/", home, rollouts, f"{rollouts}/0", f"{home}/traces/{scoring}", f"{home}/traces/{scoring}/0"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_pages_fit_and_can_be_read(
    run: Path, compiled: Path, serving: Callable[[Path], str], opened: Callable[..., Watched], width: str, scheme: str
) -> None:
    home = serving(run.parent)
    report = next((compiled / "build").rglob("report.html")).as_uri()
    seen = opened("about:blank", WIDTHS[width], color_scheme=scheme)
    grounds = set()
    for address in [*(home + path for path in addresses(run)), report]:
        seen.page.goto(address)
        closed = seen.page.locator("details:not([open]) > summary:visible")
        for _ in range(min(3, closed.count())):
            closed.first.click()
        if "/rollouts/" in address or "/traces/" in address:
            seen.page.locator("pre.answer:visible").first.wait_for()
        assert seen.page.evaluate("document.documentElement.scrollWidth") <= WIDTHS[width], address
        assert seen.page.evaluate(WIDER) == [], address
        assert seen.page.evaluate(CONTRAST) == [], address
        levels = seen.page.evaluate(HEADINGS)
        assert levels[0] == 1 and levels.count(1) == 1, address
        assert all(b <= a + 1 for a, b in pairwise(levels)), (address, levels)
        grounds.add(seen.page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert len(grounds) == 1 and ("21, 22, 23" in grounds.pop()) == (scheme == "dark")
    assert seen.wrong == []


def test_the_keyboard_opens_a_group_and_shows_where_it_is(
    run: Path, serving: Callable[[Path], str], opened: Callable[..., Watched]
) -> None:
    seen = opened(f"{serving(run.parent)}/run/{run.name}/rollouts/2-weights")
    page = seen.page
    for _ in range(30):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.matches('#groups summary')"):
            break
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    members = page.locator("#groups details[open] table.members tbody tr")
    members.first.wait_for()
    kept = json.loads((run / "2-weights/training/rollouts.jsonl").read_text().splitlines()[-1])
    assert members.count() >= len(kept["members"]) - 1
    text = page.locator("#groups details[open]").inner_text()
    assert ("others of its group were selected" in text and "trained on" in text) or "no gradient" in text
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.closest('#groups details[open]') !== null")
    assert seen.wrong == []


def test_the_skip_link_comes_first(run: Path, serving: Callable[[Path], str], opened: Callable[..., Watched]) -> None:
    page = opened(serving(run.parent)).page
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"


def test_a_filter_applies_in_place(run: Path, serving: Callable[[Path], str], opened: Callable[..., Watched]) -> None:
    seen = opened(f"{serving(run.parent)}/run/{run.name}/rollouts/2-weights")
    page = seen.page
    page.evaluate("window.same = true")
    page.locator("select[name=step]").select_option("2")
    expect(page.locator("#groups h2")).to_have_count(1, timeout=WAIT)
    page.locator("select[name=module]").select_option("pick")
    expect(page.locator("#groups summary strong", has_text="query")).to_have_count(0, timeout=WAIT)
    assert page.locator("#groups summary strong", has_text="pick").count() > 0
    assert page.evaluate("window.same") and "step=2&module=pick" in page.url
    page.reload()
    assert page.locator("select[name=module]").input_value() == "pick"
    assert seen.wrong == []


def test_a_page_goes_on_while_lines_are_written_and_the_reader_keeps_the_place(
    run: Path, serving: Callable[[Path], str], opened: Callable[..., Watched]
) -> None:
    home, training = serving(run.parent), run / "2-weights/training"
    groups, curves = (opened(f"{home}/run/{run.name}{path}", 375) for path in ("/rollouts/2-weights", ""))
    page = groups.page
    page.evaluate("window.same = true")
    third = page.locator("#groups details").nth(3)
    name = third.get_attribute("id")
    third.locator("summary").focus()
    page.keyboard.press("Enter")
    third.locator("table.members").wait_for()
    top = third.bounding_box()["y"]
    rollouts, metrics = training / "rollouts.jsonl", training / "metrics.jsonl"
    line = json.loads(rollouts.read_text().splitlines()[0])
    with rollouts.open("a") as file:
        file.write(json.dumps({**line, "step": 4, "example": "brand-new"}) + "\n" + '{"step": 4, "exam')
    page.get_by_text("brand-new").first.wait_for()
    assert page.evaluate("window.same")
    assert page.locator(f"#{name}[open] table.members").is_visible()
    assert page.evaluate("document.activeElement.parentElement.id") == name
    assert abs(page.locator(f"#{name}").bounding_box()["y"] - top) < 250, "what is read stays in view"
    row = json.loads(metrics.read_text().splitlines()[-1])
    assert curves.page.get_by_text("Step 3 of 3").count() == 1
    with metrics.open("a") as file:
        file.write(json.dumps({**row, "step": 4, "steps": 9}) + "\n" + '{"step": 5')
    curves.page.get_by_text("Step 4 of 9").wait_for()
    assert "steps 1 to 4" in curves.page.locator("#chart-reward svg[role=img]").get_attribute("aria-label")
    assert groups.wrong == [] and curves.wrong == []


def test_it_says_when_the_viewer_is_gone(
    run: Path, serving: Callable[[Path], str], opened: Callable[..., Watched]
) -> None:
    page = opened(serving(run.parent)).page
    page.route("**/*", lambda route: route.abort())
    page.get_by_text("no connection to mmc view").wait_for()
    page.unroute("**/*")
    expect(page.locator("#connection")).to_have_text("", timeout=WAIT)


def test_nothing_moves_for_who_wants_no_motion(compiled: Path, opened: Callable[..., Watched]) -> None:
    report = next((compiled / "build").rglob("report.html")).as_uri()
    for wanted, behaviour in (("reduce", "auto"), ("no-preference", "smooth")):
        page = opened(report, reduced_motion=wanted).page
        assert page.evaluate("getComputedStyle(document.documentElement).scrollBehavior") == behaviour
