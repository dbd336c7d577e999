"""A real compile of a tiny program, its run folder, and the viewer of a copy of it."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mmc.compile import CompileJob, compile_spec
from mmc.spec import load

from ..compile.conftest import write_program

CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
QUIET = "--no-sandbox --disable-gpu --disable-background-networking --disable-component-update --disable-sync --no-first-run"
OVERRIDES = [
    "compile.weights.steps=3",
    "compile.weights.grouping.select=3",
    "compile.gate=true",
    "modules.query.logprobs=true",
]


@pytest.fixture(scope="session")
def compiled(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``build`` and ``runs`` of a finished compile. Read only."""
    folder = tmp_path_factory.mktemp("viewed")
    write_program(folder, tiny_model_dir)
    compile_spec(CompileJob(load(folder / "spec.yaml", OVERRIDES), folder / "build", folder / "runs"))
    return folder


@pytest.fixture(scope="module")
def chromium(compiled: Path) -> Iterator[Any]:
    """A headless browser that starts nothing of its own on the network.

    Until it is closed an event loop runs in this thread, so nothing may compile meanwhile, and other modules must not share it.
    """
    found = os.environ.get("MMC_CHROMIUM") or next(filter(None, map(shutil.which, CHROMIUM)), None)
    if found is None:
        pytest.skip(f"none of {', '.join(CHROMIUM)} is on the PATH; MMC_CHROMIUM can name a browser")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=QUIET.split())
        yield browser
        browser.close()


@pytest.fixture
def runs(compiled: Path, tmp_path: Path) -> Path:
    """A copy of the runs that a test may change."""
    shutil.copytree(compiled / "runs", tmp_path / "runs")
    return tmp_path / "runs"


@pytest.fixture
def run(runs: Path) -> Path:
    """The only run."""
    (found,) = runs.iterdir()
    return found


@pytest.fixture
def serving() -> Iterator[Callable[[Path], str]]:
    """Serves the viewer of a folder as the command does; gives its address."""
    import uvicorn

    from mmc.view.app import make_app

    servers: list[tuple[uvicorn.Server, threading.Thread]] = []

    def serve(root: Path) -> str:
        server = uvicorn.Server(uvicorn.Config(make_app(root), host="127.0.0.1", port=0, log_level="warning"))
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        servers.append((server, thread))
        deadline = time.monotonic() + 20
        while not server.started and time.monotonic() < deadline:
            time.sleep(0.02)
        port = server.servers[0].sockets[0].getsockname()[1]
        return f"http://127.0.0.1:{port}"

    yield serve
    for server, thread in servers:
        server.should_exit = True
        thread.join(timeout=10)
