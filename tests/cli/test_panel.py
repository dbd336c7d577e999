"""The live panel, drawn to a terminal of our own."""

from __future__ import annotations

import io
import os
import pty
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from mmc.cli.panel import Panel, curve
from mmc.cli.progress import PlainProgress, make_progress
from mmc.engine.base import Spent


@dataclass
class Engine:
    spent: Spent = field(default_factory=Spent)


def drawn(panel: Panel, width: int) -> list[str]:
    out = Console(file=io.StringIO(), width=width, height=24, force_terminal=False)
    out.print(panel)
    return out.file.getvalue().splitlines()  # type: ignore[attr-defined,no-any-return]


def working(monkeypatch: pytest.MonkeyPatch) -> tuple[Panel, Any]:
    """A panel in the middle of a training, ten seconds a step."""
    clock = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    panel, engine = Panel(Console(file=io.StringIO())), Engine()
    panel.watch([engine])  # type: ignore[list-item]
    panel.stage("weights", 2, 2)
    panel.begin("mmGRPO", 14)
    for step in range(1, 7):
        clock[0] += 10
        engine.spent.tokens += 3000
        panel.advance(step, f"reward {step / 10:.3f}, groups with spread 40%", step / 10)
    return panel, engine


@pytest.mark.parametrize("width", [60, 80, 160])
def test_it_shows_stage_step_reward_rate_and_time_left_at_any_width(
    width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    panel, engine = working(monkeypatch)
    lines = drawn(panel, width)
    assert all(len(line) <= min(width - 3, 100) for line in lines) and len(lines) == 6
    text = "\n".join(lines)
    assert "stage 2 of 2: weights" in lines[0] and re.search(r"mmGRPO\s.*\s6/14 ", lines[1])
    assert "reward 0.600, groups with spread 40%" in text and "▁▂▄▅▇█  0.1 to 0.6" in text
    assert "1m00s · 1m20s left · 300 tokens/s" in text and "$" not in text
    engine.spent.dollars = 0.0123
    assert "· $0.0123" in "\n".join(drawn(panel, width))
    engine.spent.dollars = None
    assert "· cost unknown" in "\n".join(drawn(panel, width))


def test_another_piece_of_work_begins_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    panel, _ = working(monkeypatch)
    panel.begin("after weights: scoring test", 160)
    text = "\n".join(drawn(panel, 80))
    assert "0/160" in text and "reward" not in text and "left" not in text and "tokens/s" not in text


def test_a_curve_is_as_long_as_its_values() -> None:
    assert curve([1.0, 1.0]) == "▁▁  1 to 1"
    assert curve([0.0, 7.0, 3.0])[:3] == "▁█▄"


def test_pipes_and_dumb_terminals_get_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(make_progress(), PlainProgress)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert isinstance(make_progress(), Panel)
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(make_progress(), PlainProgress)


def test_a_total_that_is_corrected_begins_nothing_anew(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A search knows only after its first trial how many there will be."""
    clock = iter([100.0, 120.0, 140.0])
    monkeypatch.setattr("mmc.cli.progress.time.monotonic", lambda: next(clock))
    progress = PlainProgress()
    progress.begin("prompt search", 1)
    progress.begin("prompt search", 8)
    progress.advance(1)
    progress.begin("prompt search", 6)
    progress.advance(2)
    assert capsys.readouterr().err.splitlines() == [
        "prompt search ...",
        "prompt search 1/8 (12%), 0.05/s, 2m20s left",
        "prompt search 2/6 (33%), 0.05/s, 1m20s left",
    ]


SCRIPT = """
import os, signal, sys, time
from mmc.cli.progress import make_progress
signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever started the tests may have had it ignored
try:
    with make_progress() as progress:
        progress.begin("mmGRPO", 4)
        progress.advance(1, "reward 0.5", 0.5)
        progress.say("a line worth keeping")
        time.sleep(0.4)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.mark.parametrize("colours", [True, False])
def test_an_interrupt_leaves_a_clean_terminal(colours: bool) -> None:
    leader, follower = pty.openpty()
    environment = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "TERM")} | {"TERM": "xterm-256color"}
    environment |= {} if colours else {"NO_COLOR": "1"}
    repo = Path(__file__).parents[2]
    child = subprocess.Popen([sys.executable, "-c", SCRIPT], stderr=follower, env=environment, cwd=repo)
    os.close(follower)
    seen = b""
    while True:
        try:
            piece = os.read(leader, 4096)
        except OSError:  # the other end is closed
            break
        if not piece:
            break
        seen += piece
    os.close(leader)
    assert child.wait(timeout=30) == 130
    text = seen.decode()
    assert "a line worth keeping" in text and "reward 0.5" in text
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1, "the cursor is hidden, and shown again"
    assert text.rindex("\x1b[2K") > text.rindex("mmGRPO"), "the panel is wiped out"
    assert bool(re.search(r"\x1b\[[\d;]*3[0-7]|\x1b\[38;", text)) == colours
