"""One tracker in an environment where its library is: logs a run in two goes, reads it back with the library's own reader.

python library_side.py NAME FOLDER prints the points of ``weights/reward`` and a setting as JSON.
"""

from __future__ import annotations

import json
import struct
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mmc.track import TRACKERS, Run

Found = tuple[list[list[float]], Any]
"""Steps with rewards, in the order they are stored; the setting `compile.seed`."""


def write(name: str, folder: Path) -> None:
    """Three steps, a score, and after a new beginning one step more."""
    settings = {"compile.seed": 7, "compile.strategy": '["weights"]'}
    tracker = TRACKERS[name]()
    tracker.open(Run("tiny", "tiny-0123-1", folder, "", settings, 0))
    for step in (1, 2, 3):
        tracker.log("weights", step, {"reward": step / 10, "modules/pick/reward": 0.5})
    tracker.log("test", 0, {"score": 0.25})
    tracker.flush()
    tracker.close()
    time.sleep(1.1)  # wandb names an offline folder by the second, and two processes never open a run within one
    tracker = TRACKERS[name]()
    tracker.open(Run("tiny", "tiny-0123-1", folder, "", settings, 4))
    tracker.log("weights", 4, {"reward": 0.4, "modules/pick/reward": 0.5})
    tracker.flush()
    tracker.close()


def read_mlflow(folder: Path) -> Found:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("tiny")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == "tiny-0123-1" and run.info.status == "FINISHED"
    history = client.get_metric_history(run.info.run_id, "weights/reward")
    return [[m.step, m.value] for m in history], int(run.data.params["compile.seed"])


def read_wandb(folder: Path) -> Found:
    import wandb
    from wandb.proto.wandb_internal_pb2 import Record

    wandb.teardown()  # ends its service, which writes the files
    points, seed, steps = [], None, []
    for file in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        for data in wandb_records(file.read_bytes()):
            record = Record()
            record.ParseFromString(data)
            if record.HasField("history"):
                line = {".".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item}
                steps.append(line["_step"])
                if "weights/reward" in line:
                    points.append([line["weights/step"], line["weights/reward"]])
            if record.HasField("run"):
                assert record.run.run_id == "tiny-0123-1" and record.run.project == "tiny"
                config = {i.key or ".".join(i.nested_key): i.value_json for i in record.run.config.update}
                seed = json.loads(config["compile.seed"])
    assert steps == sorted(set(steps)), "the library's own step grows over both goes, so that a sync takes all of them"
    return points, seed


def wandb_records(stored: bytes) -> Iterator[bytes]:
    """The records of an offline run's file, for which the library has no reader in Python: after a head of 7 bytes a log as
    LevelDB's, in blocks of 32 KiB; each piece has a checksum (4 bytes), its length (2) and its kind (1).
    """
    place, whole = 7, b""
    while place + 7 <= len(stored):
        left = 32768 - place % 32768
        length, kind = struct.unpack_from("<HB", stored, place + 4) if left >= 7 else (0, 0)
        if left < 7 or kind == 0:
            place += left
            continue
        whole += stored[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # all of a record, or its end
            yield whole
            whole = b""


def read_trackio(folder: Path) -> Found:
    from trackio import Api, SQLiteStorage

    (run,) = Api().runs("tiny")
    assert run.name == "tiny-0123-1"
    lines = [line for line in SQLiteStorage.get_logs("tiny", run.name, run_id=run.id) if "weights/reward" in line]
    return [[line["weights/step"], line["weights/reward"]] for line in lines], run.config["compile.seed"]


READERS: dict[str, Callable[[Path], Found]] = {"mlflow": read_mlflow, "wandb": read_wandb, "trackio": read_trackio}

if __name__ == "__main__":
    name, folder = sys.argv[1], Path(sys.argv[2])
    write(name, folder)
    print(json.dumps(READERS[name](folder)))
