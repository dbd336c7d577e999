from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from mmc.engine import answers as kept
from mmc.engine import onednn, remote

from .remote_api import KEY, Api


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Api]:
    monkeypatch.setattr(remote, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(kept, "PLACE", tmp_path / "answers.sqlite")
    monkeypatch.setenv("TINY_KEY", KEY)
    server = Api()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.over.set()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(params=["amd epyc", "intel xeon processor", ""])
def processor(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What the machine calls its processor, which decides on whose products are taken."""
    name: str = request.param
    monkeypatch.setattr(onednn, "_processor", lambda: name)
    return name
