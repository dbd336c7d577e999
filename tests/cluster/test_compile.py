"""Whole compiles over two workers, from the command line; and the real small model."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from safetensors.numpy import load_file

from mmc.cluster import Cluster
from mmc.data import load_split
from mmc.engine import open_engines
from mmc.mmgrpo.group import Rewards, form_groups
from mmc.mmgrpo.policy import make_learner
from mmc.mmgrpo.update import module_terms, training_calls
from mmc.program.graph import Program
from mmc.program.run import RunSettings, run_all
from mmc.program.trajectory import Trajectory
from mmc.spec import load
from mmc.spec.cluster import Cluster as Config

from .conftest import EXAMPLES, write_program

REPO = Path(__file__).parents[2]
COMPILE = """\
data:
  train: {file: rows.jsonl, part: [0.0, 0.4]}
  dev: {file: rows.jsonl, part: [0.4, 0.7]}
  test: {file: rows.jsonl, part: [0.7, 1.0]}
compile:
  strategy: [prompts, distill, weights]
  gate: false
  prompts: {trials: 2, examples: 4}
  distill: {examples: 6, threshold: 0.5, epochs: 1, batch: 4}
  weights: {steps: 6, examples: 4, rollouts: 4, learning_rate: 0.01, evaluate_every: 3}
"""


def write_compile(folder: Path, model: Path) -> None:
    spec = write_program(folder, model)
    text = spec.read_text().replace("max_tokens: 100}", "max_tokens: 100, candidates: {instruction: [Say it.]}}")
    spec.write_text(text.replace("  judge: {type: openai, model: none, concurrency: 9}\n", "") + COMPILE)
    rows = [{**EXAMPLES[i % 3].row, "q": f"{i} asks"} for i in range(20)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def command(out: str, *more: str) -> list[str]:
    return [sys.executable, "-m", "mmc", "compile", "spec.yaml", "--out", out, "--runs", f"runs-{out}", "--json", *more]


def kill_a_worker(process: subprocess.Popen[str]) -> bool:
    """Kills one of Ray's processes that run a worker of ours; whether there was one."""
    for child in psutil.Process(process.pid).children(recursive=True):
        if child.is_running() and "ray::Worker" in " ".join(child.cmdline()):
            child.send_signal(signal.SIGKILL)
            return True
    return False


@pytest.mark.slow
def test_a_compile_whose_worker_is_killed_twice_ends_as_one_in_one_process_and_prints_its_result_alone(
    tmp_path: Path, tiny_model_dir: Path
) -> None:
    write_compile(tmp_path, tiny_model_dir)
    alone = subprocess.run(command("alone"), cwd=tmp_path, capture_output=True, text=True, check=True)
    process = subprocess.Popen(
        command("spread", "--cluster", "local"),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    for stage, file in (("1-prompts", "search/journal.jsonl"), ("3-weights", "training/metrics.jsonl")):
        while not list(tmp_path.glob(f"runs-spread/*/{stage}/{file}")) and process.poll() is None:
            time.sleep(0.02)
        assert kill_a_worker(process)
    out, said = process.communicate(timeout=600)
    assert process.returncode == 0, said
    found, expected = json.loads(out), json.loads(alone.stdout)
    assert found["stages"] == expected["stages"]
    assert len(re.findall(r"^worker \d \(process \d+ on [\d.]+\) is gone and will be replaced", said, re.M)) == 2
    assert not re.search(r"raylet|dashboard|Traceback|[Ww]arning", said), said
    assert "cluster: 2 workers on 1 machine, 1 thread each (CPU)" in said
    (spread,), (single,) = (list(tmp_path.glob(f"runs-{name}/*")) for name in ("spread", "alone"))
    for name in ("3-weights/training/rollouts.jsonl", "1-prompts/search/journal.jsonl"):
        assert (spread / name).read_bytes() == (single / name).read_bytes(), name
    steps = [
        json.loads(line)["step"] for line in (spread / "3-weights/training/metrics.jsonl").read_text().splitlines()
    ]
    assert steps == [1, 2, 3, 4, 5, 6]
    time.sleep(2)
    assert not [p for p in psutil.process_iter(["cmdline"]) if "ray::Worker" in " ".join(p.info["cmdline"] or ())]


NODES = """
import subprocess, sys
from ray.cluster_utils import Cluster

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
cluster.add_node(num_cpus=1)
code = subprocess.call([*sys.argv[1:], cluster.address])
cluster.shutdown()
sys.exit(code)
"""
"""A cluster of two nodes with one core each, and a command that is given its address."""


@pytest.mark.slow
def test_a_cluster_that_runs_already_is_named_by_its_address(tmp_path: Path, tiny_model_dir: Path) -> None:
    write_compile(tmp_path, tiny_model_dir)
    few = ["--set", "compile.strategy=[weights]", "--set", "compile.weights.steps=2"]
    whole = [sys.executable, "-c", NODES, *command("nodes", *few, "--cluster")]
    done = subprocess.run(whole, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert [stage["stage"] for stage in json.loads(done.stdout)["stages"]] == ["start", "weights"]
    assert "cluster: 2 workers on 1 machine" in done.stderr


@pytest.fixture
def as_a_worker() -> Iterator[None]:
    """With a worker's one thread: on some processors the number of threads decides the last bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.usefixtures("as_a_worker")
def test_two_workers_draw_and_train_as_one_process_does_with_the_real_model(tmp_path: Path) -> None:
    """What is computed together decides the last bits. So each worker's share is compared bit for bit with the same share here;
    between that and all at once, a draw that falls close to the border of two improbable tokens may tip.
    """
    loaded = load(REPO / "specs/helpdesk.yaml")
    program, config, examples = Program.build(loaded), loaded.spec.compile.weights, load_split(loaded, "train")[:8]
    here, sampling, rollouts = open_engines(loaded), RunSettings("weights", 0, 0, 1.0), 4
    with Cluster("local", Config(workers=2)) as cluster:
        spread = cluster.open_engines(loaded, [], False, print)
        runs = run_all(program, spread, examples, sampling, rollouts)
        learners = {
            "alone": make_learner(program, here, config, "alike", 0, {}),
            "together": make_learner(program, spread, config, "alike", 0, {}),
        }
        for name, learner in learners.items():
            groups = form_groups(runs, list(learner.names), Rewards())
            learner.set_rate(1e-3, config.learning_rate)
            calls = training_calls(groups, config, module_terms(loaded.spec, learner.names))
            assert learner.update(calls, config.model_copy(update={"forest_tokens": 4096}), 0).tokens > 50
            learner.save(tmp_path / name)
        spread["policy"].close()
    halves = [run_all(program, here, half, sampling, rollouts) for half in (examples[:4], examples[4:])]
    assert [_drawn(run) for run in runs] == [_drawn(run) for half in halves for run in half], "bit for bit"
    whole = run_all(program, here, examples, sampling, rollouts)
    assert sum(_drawn(a)[0] == _drawn(b)[0] for a, b in zip(runs, whole, strict=True)) >= 28, "of 32 runs"
    alone, together = (_tensors(tmp_path / name) for name in learners)
    moved = np.concatenate([tensor.ravel() for name, tensor in alone.items() if "lora_B" in name])
    apart = np.concatenate([(together[name] - tensor).ravel() for name, tensor in alone.items() if "lora_B" in name])
    assert np.linalg.norm(apart) < 1e-2 * np.linalg.norm(moved), np.linalg.norm(apart) / np.linalg.norm(moved)


def _drawn(run: Trajectory) -> tuple[Any, Any]:
    """The tokens of a run, and their log-probabilities."""
    return [call.completion.ids_T for call in run.calls], [call.completion.logprobs_T for call in run.calls]


def _tensors(folder: Path) -> dict[str, Any]:
    files = sorted(folder.rglob("adapter_model.safetensors"))
    return {f"{file.parent.name}.{key}": tensor for file in files for key, tensor in load_file(file).items()}
