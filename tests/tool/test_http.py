"""The HTTP tool against a real server that misbehaves in every way we know."""

from __future__ import annotations

import asyncio
import json
import socketserver
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from mmc.errors import EnvironmentProblem, InvalidError, ToolError
from mmc.program.check import check
from mmc.spec import load
from mmc.spec.tools import HttpTool
from mmc.tool import http as http_tool
from mmc.tool.http import HttpRequest, open_http


class Service(BaseHTTPRequestHandler):
    """What it does stands in the path."""

    seen: list[tuple[str, str, dict[str, str], bytes]] = []
    other = ""

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.seen.append((self.command, self.path, dict(self.headers), body))
        kind = self.path.split("/")[1].partition("?")[0]
        count = sum(path == self.path for _, path, _, _ in self.seen)
        if kind == "echo":
            self._send(200, json.dumps({"path": self.path, "body": body.decode(), "items": [{"t": "one"}]}))
        elif kind == "flaky":
            self._send(503 if count < 3 else 200, '"there"', {"Retry-After": "0"})
        elif kind == "status":
            self._send(int(self.path.split("/")[2]), "no")
        elif kind == "hang":
            time.sleep(1.5)
        elif kind == "drip":
            self._drip()
        elif kind == "cut":
            self.send_response(200)
            self.send_header("Content-Length", "100")
            self.end_headers()
            self.wfile.write(b"half")
            self.close_connection = True
        elif kind == "huge":
            self._send(200, "x" * 100_000)
        elif kind == "html":
            self._send(200, "<html>")
        elif kind == "away":
            self._send(302, "", {"Location": f"{self.other}/echo"})
        elif kind == "near":
            self._send(302, "", {"Location": "/echo/near"})
        elif kind == "round":
            self._send(302, "", {"Location": "/round"})

    do_POST = do_GET

    def _drip(self) -> None:
        self.send_response(200)
        self.end_headers()
        for _ in range(15):
            self.wfile.write(b"1")
            self.wfile.flush()
            time.sleep(0.1)

    def _send(self, status: int, body: str, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *arguments: Any) -> None:
        pass

    def handle(self) -> None:
        with suppress(ConnectionError):  # the client left, as it should
            super().handle()


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with (
        ThreadingHTTPServer(("127.0.0.1", 0), Service) as server,
        ThreadingHTTPServer(("127.0.0.1", 0), Service) as other,
    ):
        for one in (server, other):
            one.daemon_threads = True
            threading.Thread(target=one.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        Service.other = f"http://127.0.0.1:{other.server_port}"
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        other.shutdown()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_tool, "FIRST_PAUSE", 0.01)
    Service.seen.clear()


def ask(url: str, arguments: dict[str, Any] | None = None, **settings: Any) -> Any:
    tool = HttpRequest(HttpTool(type="http", url=url, **settings))
    try:
        return asyncio.run(tool(arguments or {}))
    finally:
        tool.close()


def failure(url: str, **settings: Any) -> str:
    with pytest.raises(ToolError) as found:
        ask(url, **settings)
    return str(found.value)


def test_arguments_go_into_path_query_or_body(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVICE_KEY", "s3cret")
    found = ask(f"{address}/echo/{{city}}?units=m", {"city": "Bad Köln/..", "days": 3, "tags": ["a b"]})
    assert found["path"] == "/echo/Bad%20K%C3%B6ln%2F..?units=m&days=3&tags=%5B%22a+b%22%5D"
    headers = {"X-Key": "${env:SERVICE_KEY}"}
    posted = ask(f"{address}/echo", {"q": "ö"}, method="POST", headers=headers, result="body")
    assert json.loads(posted) == {"q": "ö"}
    assert Service.seen[-1][2]["X-Key"] == "s3cret" and Service.seen[-1][2]["Content-Type"] == "application/json"
    assert ask(f"{address}/echo", result="items[0].t") == "one"
    assert ask(f"{address}/html", format="text") == "<html>"
    with pytest.raises(ToolError, match="would change the URL's path"):
        ask(f"{address}/echo/{{city}}", {"city": ".."})


def test_what_may_mend_is_asked_again_and_the_rest_is_not(address: str) -> None:
    assert ask(f"{address}/flaky/a") == "there" and len(Service.seen) == 3
    assert "status 503 Service Unavailable, 2 attempts" in failure(f"{address}/status/503", retries=1)
    assert "status 500" in failure(f"{address}/status/500") and len(Service.seen) == 6
    assert "status 502" in failure(f"{address}/status/502", method="POST") and len(Service.seen) == 7
    assert ask(f"{address}/flaky/b", method="POST") == "there"


def test_a_server_that_misbehaves_ends_in_a_reason(address: str) -> None:
    assert "no answer within 0.2 s, 2 attempts" in failure(f"{address}/hang", timeout=0.2, retries=1)
    assert "no answer within 0.3 s" in failure(f"{address}/drip", timeout=0.3, retries=0)
    assert "POST and PATCH are not repeated" in failure(f"{address}/hang", method="POST", timeout=0.2)
    assert "the connection was lost" in failure(f"{address}/cut", retries=1)
    assert "larger than 1000 bytes" in failure(f"{address}/huge", max_bytes=1000)
    assert "not JSON" in failure(f"{address}/html")
    assert "no items[7] (nothing at 7)" in failure(f"{address}/echo", result="items[7]")
    with socketserver.TCPServer(("127.0.0.1", 0), socketserver.BaseRequestHandler) as closed:
        port = closed.server_address[1]
    assert "no connection" in failure(f"http://127.0.0.1:{port}/x", retries=1)


def test_redirects_stay_at_home_unless_allowed(address: str) -> None:
    assert ask(f"{address}/near")["path"] == "/echo/near"
    assert "`redirects` does not allow" in failure(f"{address}/away")
    host = Service.other.removeprefix("http://")
    headers = {"X-Key": "private"}
    assert ask(f"{address}/away", redirects=[host], headers=headers)["path"] == "/echo"
    assert "X-Key" in Service.seen[-2][2] and "X-Key" not in Service.seen[-1][2]
    assert "more than 5 redirects" in failure(f"{address}/round")


def test_secrets_are_read_late_and_never_shown(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SERVICE_KEY", raising=False)
    config = {"headers": {"X-Key": "${env:SERVICE_KEY}"}}
    with pytest.raises(EnvironmentProblem, match="SERVICE_KEY is not set"):
        ask(f"{address}/echo", **config)
    monkeypatch.setenv("SERVICE_KEY", "s3cret\nx")
    with pytest.raises(EnvironmentProblem, match="header X-Key has a line break"):
        ask(f"{address}/echo", **config)
    monkeypatch.setenv("SERVICE_KEY", "s3cret")
    assert "s3cret" not in failure(f"{address}/status/500?key=${{env:SERVICE_KEY}}")
    assert Service.seen[-1][1].endswith("key=s3cret")


def test_the_spec_is_checked(tmp_path: Path) -> None:
    (tmp_path / "echo.j2").write_text("{{ text }}")
    spec = """\
mmc: 1
name: web
models: {m: {type: local, source: "path:x"}}
tools: {get: {type: http, url: "https://example.org/{city}", result: "a..b"}}
modules: {echo: {model: m, template: echo.j2, inputs: {text: str}, outputs: {said: str}}}
program: {inputs: {text: str}, steps: [{tool: get, with: {town: "{{ text }}"}}, {call: echo}], outputs: {out: "{{ get }}"}}
"""
    (tmp_path / "spec.yaml").write_text(spec)
    loaded = load(tmp_path / "spec.yaml")
    (problem,) = check(loaded)
    assert problem.message == "the URL of 'get' needs the argument 'city'" and problem.line == 6
    with pytest.raises(InvalidError, match="no path into JSON"):
        open_http(loaded, "get", loaded.spec.tools["get"], False)  # type: ignore[arg-type]
    for url in ("https://{host}/x", "https://${env:HOST}/x", "file:///etc/passwd"):
        (tmp_path / "spec.yaml").write_text(spec.replace("https://example.org/{city}", url))
        with pytest.raises(InvalidError, match=r"url|match"):
            load(tmp_path / "spec.yaml")
