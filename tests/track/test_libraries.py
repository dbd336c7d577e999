"""Each tracker against its library's own reader: what was logged stands there, once, also when a run was gone on with."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from mmc.track import TRACKERS, Run

REPO = Path(__file__).parents[2]
PYTHON = REPO / ".peers/track/bin/python"


@pytest.mark.parametrize("where", ["", "elsewhere"])
def test_tensorboard(tmp_path: Path, where: str) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    run = Run("tiny", "tiny-0123-1", tmp_path / "track", str(tmp_path / where) if where else "", {}, 0)
    for steps in ((1, 2, 3), (4,)):
        tracker = TRACKERS["tensorboard"]()
        place = tracker.open(run)
        for step in steps:
            tracker.log("weights", step, {"reward": step / 10, "modules/pick/reward": 0.5})
        tracker.flush()
        tracker.close()
    home = tmp_path / where if where else tmp_path / "track/tensorboard"
    assert str(home) in place
    found = EventAccumulator(str(home / "tiny-0123-1"))
    found.Reload()
    points = [(event.step, float(make_ndarray(event.tensor_proto))) for event in found.Tensors("weights/reward")]
    assert points == [(step, pytest.approx(step / 10)) for step in (1, 2, 3, 4)]
    assert found.SummaryMetadata("weights/modules/pick/reward").plugin_data.plugin_name == "scalars"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mlflow", "wandb", "trackio"])
def test_the_others_in_an_environment_of_their_own(tmp_path: Path, name: str) -> None:
    if not PYTHON.exists():
        pytest.fail("the trackers' environment is missing: run `make .peers/track/.ready`")
    kept = {
        key: value for key, value in os.environ.items() if not key.startswith(("WANDB", "MLFLOW", "TRACKIO", "HF_"))
    }
    environment = {**kept, "PYTHONPATH": str(REPO), "HOME": str(tmp_path), "TRACKIO_DIR": str(tmp_path / "trackio")}
    command = [str(PYTHON), str(REPO / "tests/track/library_side.py"), name, str(tmp_path / "track")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    points, seed = json.loads(done.stdout.splitlines()[0])
    assert points == [[1, 0.1], [2, 0.2], [3, 0.3], [4, 0.4]] and seed == 7
