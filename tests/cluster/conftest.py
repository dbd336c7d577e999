"""One Ray cluster and two workers for a module of tests: starting them takes longer than what they do here."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from mmc.cluster import Cluster
from mmc.cluster.engines import ClusterEngines
from mmc.data import Example
from mmc.engine import open_engines
from mmc.mmgrpo.group import Rewards, form_groups
from mmc.mmgrpo.policy import Learner
from mmc.mmgrpo.update import TrainingCall, module_terms, training_calls
from mmc.program.graph import Program
from mmc.program.run import RunSettings, run_all
from mmc.program.trajectory import Trajectory
from mmc.spec import load
from mmc.spec.cluster import Cluster as Config
from mmc.spec.model import MmGrpo

SPEC = """\
mmc: 1
name: spread
models:
  policy: {type: local, source: "path:SOURCE"}
  judge: {type: openai, model: none, concurrency: 9}
modules:
  think: {model: policy, template: think.j2, inputs: {q: str}, outputs: {t: str}, max_tokens: 100}
  pick:
    {model: policy, template: pick.j2, inputs: {q: str, t: str}, outputs: {a: {enum: [red, green, grey]}}, constrain: true}
program:
  inputs: {q: str}
  steps: [{call: think}, {call: pick, with: {t: "{{ think.t }}"}}]
  outputs: {a: "{{ pick.a }}"}
metric: {type: exact, predicted: a, gold: gold}
cluster: {workers: 2, timeout: 120}
"""
EXAMPLES = [Example(str(i), {"q": f"{i} asks", "gold": ["red", "green", "grey"][i % 3]}) for i in range(6)]
CONFIG = MmGrpo(steps=3, examples=4, rollouts=4, learning_rate=0.01)
SAMPLING = RunSettings("weights", 0, 2, 1.0)


@dataclass
class Spread:
    """A program, and its engines over two workers."""

    program: Program
    engines: ClusterEngines
    said: list[str]

    def process(self, worker: int) -> int:
        about = self.engines.pool.members[worker].about
        assert about is not None
        return about.pid

    def calls(self, runs: list[Trajectory], learner: Learner) -> list[TrainingCall]:
        """What training makes of ``runs``."""
        groups = form_groups(runs, list(learner.names), Rewards())
        return training_calls(groups, CONFIG, module_terms(self.program.spec, learner.names))

    def here(self, rollouts: int, settings: RunSettings = SAMPLING) -> list[Trajectory]:
        """Runs on all examples, in this process."""
        return run_all(self.program, open_engines(self.program.loaded), EXAMPLES, settings, rollouts)


def write_program(folder: Path, model: Path) -> Path:
    """Writes the program into ``folder``; its spec."""
    (folder / "think.j2").write_text("{% user %}{% slot instruction %}Think.{% endslot %} {{ q }}{% enduser %}")
    (folder / "pick.j2").write_text("{% user %}{{ q }} {{ t }}{% enduser %}")
    (folder / "spec.yaml").write_text(SPEC.replace("SOURCE", str(model)))
    return folder / "spec.yaml"


@pytest.fixture(scope="module")
def ray_here() -> Iterator[Cluster]:
    with Cluster("local", Config(workers=2, timeout=120)) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def spread(ray_here: Cluster, tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Spread]:
    loaded = load(write_program(tmp_path_factory.mktemp("spread"), tiny_model_dir))
    said: list[str] = []
    engines = ray_here.open_engines(loaded, [], False, said.append)
    assert isinstance(engines, ClusterEngines)
    found = Spread(Program.build(loaded), engines, said)
    yield found
    for number in range(2):
        with suppress(ProcessLookupError):
            os.kill(found.process(number), signal.SIGCONT)
    engines["policy"].close()
