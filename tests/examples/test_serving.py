"""The commands and the code of examples/serving, in order, in an empty folder, with a tiny random model."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from mmc.spec import load
from tests.examples.test_specs import toy

PAGE = Path(__file__).parents[2] / "examples/serving/README.md"
HEAD = """\
mmc: 1
name: elsewhere
models: {m: {type: local, source: "path:x"}}
modules: {echo: {model: m, template: echo.j2, inputs: {text: str}, outputs: {said: str}}}
program:
  inputs: {text: str}
  steps: [{tool: weather, with: {city: "{{ text }}"}}, {tool: stock, with: {item: "{{ text }}"}}, {call: echo}]
  outputs: {out: "{{ weather }} {{ stock }}"}
"""


@pytest.mark.skipif(shutil.which("curl") is None, reason="the page's commands use curl")
def test_the_page_is_true(tmp_path: Path, tiny_model_dir: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    blocks = re.findall(r"```(\w+)\n(.*?)```", PAGE.read_text().replace("8033", port), re.DOTALL)
    init, serve, export = (text for kind, text in blocks if kind == "sh")
    (code,) = (text for kind, text in blocks if kind == "python")
    (tmp_path / "client.py").write_text(code)
    run(tmp_path, init)
    spec = tmp_path / "mine/helpdesk.yaml"
    spec.write_text(load(spec, toy(spec, tiny_model_dir)).text)
    said = run(tmp_path, f"trap 'kill $!' EXIT\n{serve}\n{sys.executable} client.py")
    assert '"ending": "done"' in said and '"field": "qestion"' in said and 'mmc_tokens_total{kind="prompt"}' in said
    run(tmp_path, export)
    made = {path.relative_to(tmp_path / "export").parts[0] for path in (tmp_path / "export").rglob("README.md")}
    assert made == {"helpdesk-merged", "helpdesk-vllm", "helpdesk-hub"}


def run(folder: Path, script: str) -> str:
    """Runs a block of the page; gives what it printed."""
    command = folder / "bin/mmc"
    command.parent.mkdir(exist_ok=True)
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m mmc "$@"\n')
    command.chmod(0o755)
    environment = {**os.environ, "NO_COLOR": "1", "PATH": f"{command.parent}:{os.environ['PATH']}"}
    with subprocess.Popen(
        ["bash", "-e", "-c", script],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as shell:
        try:
            out, errors = shell.communicate(timeout=300)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(shell.pid, signal.SIGKILL)
    assert shell.returncode == 0, errors
    return out


def test_the_tools_of_the_page_are_what_a_spec_may_hold(tmp_path: Path) -> None:
    from mmc.program.check import check

    (tools,) = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (tmp_path / "echo.j2").write_text("{{ text }}")
    (tmp_path / "spec.yaml").write_text(HEAD + tools)
    assert check(load(tmp_path / "spec.yaml")) == ()
