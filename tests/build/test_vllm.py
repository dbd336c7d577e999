"""An exported build in a running vLLM: greedy answers equal those of mmc."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from mmc.build.export import ExportJob, export
from mmc.compile import CompileJob, compile_spec
from mmc.program.graph import Program
from mmc.spec import load

REPO = Path(__file__).parents[2]
VLLM = REPO / ".peers/vllm/bin"
SMALL = ["compile.strategy=[weights]", "compile.gate=false", "compile.weights.steps=2", "compile.weights.examples=4",
         "compile.weights.evaluate_every=0", "data.test.limit=4", "data.dev.limit=12"]  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(not (VLLM / "python").exists(), reason="vLLM is not installed; `make bench` does it")
def test_vllm_gives_the_same_answers_in_float32(tmp_path: Path, real_model_dir: Path) -> None:
    loaded = load(REPO / "specs/helpdesk.yaml", [*SMALL, "compile.weights.learning_rate=0.003"])
    build = compile_spec(CompileJob(loaded, tmp_path / "build", tmp_path / "runs")).build
    out = export("vllm", ExportJob(Program.build(load(build)), tmp_path / "out", examples=12))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "PATH": f"{VLLM}:{os.environ['PATH']}", "PORT": str(port), "DTYPE": "float32"}
    environment |= {"VLLM_CPU_KVCACHE_SPACE": "2"}
    command = [str(out / "serve.sh"), "--host", "127.0.0.1", "--max-model-len", "4096"]
    with (
        (tmp_path / "log").open("w") as log,
        subprocess.Popen(command, env=environment, stdout=log, stderr=log) as server,
    ):
        try:
            await_health(f"http://127.0.0.1:{port}/health", server)
            smoke = [sys.executable, str(out / "smoke.py"), "--address", f"http://127.0.0.1:{port}"]
            done = subprocess.run(smoke, capture_output=True, text=True, check=False)
        finally:
            server.terminate()
    assert done.returncode == 0, done.stdout
    assert "of 24 answers are equal" in done.stdout


def await_health(address: str, server: subprocess.Popen[bytes]) -> None:
    for _ in range(600):
        assert server.poll() is None, "vLLM ended"
        try:
            if httpx.get(address).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(1)
    raise AssertionError("vLLM did not answer")
