"""What is refused before anything starts, and how limits and examples are divided. No Ray runs here."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmc.cluster import Cluster
from mmc.cluster.engines import shares
from mmc.cluster.session import _fitting
from mmc.cluster.worker import _shared
from mmc.data import Example
from mmc.errors import EnvironmentProblem, UsageError
from mmc.spec import load
from mmc.spec.cluster import Cluster as Config

from .conftest import write_program

SAMPLER = '{type: local, source: "path:nowhere", sampler: {type: vllm, servers: ["http://localhost:1/v1"]}}'


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(EnvironmentProblem, match=r"--cluster needs ray: pip install 'mmc\[cluster\]'"):
        Cluster("local", Config()).__enter__()


def test_a_cluster_that_does_not_answer_is_named_at_once() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(EnvironmentProblem, match=rf"no Ray cluster answers at {address} .*start one with `ray start"):
        Cluster(address, Config()).__enter__()


@pytest.mark.parametrize("address", ["ray://head:10001", "head", "head:port"])
def test_an_address_of_another_kind_is_refused(address: str) -> None:
    with pytest.raises(UsageError, match=f"--cluster {address}: "):
        Cluster(address, Config()).__enter__()


def test_models_that_a_knob_chooses_and_a_cluster_exclude_each_other(tmp_path: Path) -> None:
    loaded = load(write_program(tmp_path, tmp_path), ["compile={prompts: {knobs: {modules.pick.model: [judge]}}}"])
    with pytest.raises(UsageError, match=r"leave modules\.pick\.model or `--cluster` out"):
        Cluster("local", Config()).open_engines(loaded, [], False, print)


def test_a_sampler_and_a_cluster_exclude_each_other(tmp_path: Path) -> None:
    spec = write_program(tmp_path, tmp_path)
    spec.write_text(spec.read_text().replace(f'{{type: local, source: "path:{tmp_path}"}}', SAMPLER))
    with pytest.raises(UsageError, match=r"models\.policy\.sampler: workers of a cluster draw by themselves"):
        Cluster("local", Config()).open_engines(load(spec), [], False, print)


def test_workers_without_a_cluster_are_a_mistake() -> None:
    found = subprocess.run(
        [sys.executable, "-m", "mmc", "compile", "specs/helpdesk.yaml", "--workers", "2"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 2 and "--workers does nothing without --cluster" in found.stderr


def test_a_compile_without_a_cluster_loads_no_ray() -> None:
    code = "import sys, mmc.compile, mmc.cli.compile; assert not {'ray', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_limits_of_what_is_asked_over_a_network_are_divided_among_the_workers(tmp_path: Path) -> None:
    loaded = load(write_program(tmp_path, tmp_path))
    models = {workers: _shared(loaded, workers).spec.models for workers in (1, 2, 4, 20)}
    assert {n: found["judge"].concurrency for n, found in models.items()} == {1: 9, 2: 4, 4: 2, 20: 1}  # type: ignore[union-attr]
    assert models[2]["policy"] == loaded.spec.models["policy"]


def test_room_is_counted_by_the_scarcer_resource() -> None:
    assert _fitting({"CPU": 8, "GPU": 2}, 2, 1) == 2
    assert _fitting({"CPU": 1, "GPU": 2}, 1, 1) == 1
    assert _fitting({"CPU": 8}, 3, 0) == 2
    assert _fitting({"CPU": 8}, 1, 1) == 0


def test_the_page_says_keys_that_there_are(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "examples/cluster/README.md").read_text()
    (block,) = re.findall(r"```yaml\n(cluster:.*?)```", page, re.DOTALL)
    spec = write_program(tmp_path, tmp_path)
    spec.write_text(re.sub(r"^cluster: .*\n", block, spec.read_text(), flags=re.MULTILINE))
    assert load(spec).spec.cluster == Config(workers=8, cpus=4, gpus=1, timeout=1800)
    assert page.count("timeout: 1800") == 1 and Config().timeout == 1800


@given(st.integers(0, 50), st.integers(1, 9))
def test_examples_are_dealt_out_evenly_and_in_order(count: int, workers: int) -> None:
    examples = [Example(str(i), {}) for i in range(count)]
    found = shares(examples, workers)
    assert [one for share in found for one in share] == examples
    assert len(found) == workers and max(map(len, found)) - min(map(len, found)) <= 1
