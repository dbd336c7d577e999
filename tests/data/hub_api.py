"""As much of the Hugging Face hub's API on loopback as the library `datasets` asks for one repository of two files."""

from __future__ import annotations

import hashlib
import json
import re
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlparse

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {
    "train.jsonl": b'{"text": "a", "label": "x"}\n{"text": "b", "label": "y"}\n',
    "test.jsonl": b'{"text": "c", "label": "x"}\n',
}
REPOSITORY = "some/questions"


class Hub(ThreadingHTTPServer):
    """Has the one repository."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = unquote(urlparse(self.path).path)
        if file := re.fullmatch(rf"/datasets/{REPOSITORY}/resolve/[^/]+/(.+)", path):
            self._file(file[1])
        elif re.match(rf"/api/datasets/{REPOSITORY}/tree/", path):
            found = [
                {"type": "file", "path": name, "size": len(body), "oid": _oid(body)} for name, body in FILES.items()
            ]
            self._json(found)
        elif re.fullmatch(rf"/api/datasets/{REPOSITORY}(/revision/[^/]+)?", path):
            siblings = [{"rfilename": name} for name in FILES]
            self._json({"id": REPOSITORY, "sha": COMMIT, "private": False, "gated": False, "siblings": siblings})
        else:
            self._send(404, b"", {"X-Error-Code": "RepoNotFound"})

    do_HEAD = do_GET

    def _file(self, name: str) -> None:
        if name not in FILES:
            return self._send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
        return self._send(200, FILES[name], {"ETag": f'"{_oid(FILES[name])}"', "X-Repo-Commit": COMMIT})

    def _json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


def _oid(body: bytes) -> str:
    return hashlib.sha1(body).hexdigest()
