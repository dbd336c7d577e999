"""The commands of examples/ten_minutes, in order, in an empty folder; the compile at toy size on a tiny random model."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

from mmc.program.check import check
from mmc.spec import load
from tests.examples.test_specs import toy

PAGE = Path(__file__).parents[2] / "examples/ten_minutes/README.md"


def test_the_page_is_true(tmp_path: Path, tiny_model_dir: Path) -> None:
    blocks = re.findall(r"```(\w+)\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (code,) = (text for kind, text in blocks if kind == "python")
    (keys,) = (text for kind, text in blocks if kind == "yaml")
    commands = [line for kind, text in blocks if kind == "sh" for line in text.splitlines()]
    environment = {**os.environ, "NO_COLOR": "1"}
    said: dict[str, str] = {}
    for line in commands:
        command, _, note = line.partition("   # ")
        words = shlex.split(command)
        if words[1] in ("eval", "compile"):
            words += [word for one in toy(tmp_path / "mine/helpdesk.yaml", tiny_model_dir) for word in ("--set", one)]
        done = subprocess.run(
            [sys.executable, "-m", *words], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        expected = int(found[1]) if (found := re.search(r"exits with (\d)", note)) else 0
        assert done.returncode == expected, (line, done.stderr)
        if expected:
            assert note.split(": ")[1] in done.stderr
        said[words[1]] = done.stdout
        if words[1] == "init":
            (tmp_path / "mine/shop.py").write_text(code)
    assert "call write_query" in said["graph"] and "- Refunds" in said["render"]
    assert "2 weights" in said["plan"] and "score, from the build's own start: " in said["diff"]
    text = (tmp_path / "mine/helpdesk.yaml").read_text()
    tool, metric = keys.split("metric:")
    text = re.sub(r"^metric: .*$", f"metric:{metric.rstrip()}", text, flags=re.MULTILINE)
    (tmp_path / "mine/helpdesk.yaml").write_text(text.replace("tools:\n", tool))
    assert [p.message for p in check(load(tmp_path / "mine/helpdesk.yaml"))] == ["no step uses the tool 'shorten'"]
