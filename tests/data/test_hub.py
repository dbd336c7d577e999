"""Data sets by the library `datasets`: folders, and a repository of a hub that is played on loopback."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from datetime import datetime
from pathlib import Path
from typing import Any

import datasets
import pytest

from mmc.compile import CompileJob, compile_spec
from mmc.data import load_split
from mmc.data.hub import load_hub
from mmc.errors import EnvironmentProblem, InvalidError
from mmc.program.check import check
from mmc.spec import load
from mmc.spec.load import LoadedSpec

from .hub_api import COMMIT, REPOSITORY, Hub

ROOT = Path(__file__).parents[2]

SPEC = """\
mmc: 1
name: d
models: {p: {type: local, source: "path:MODEL"}}
modules: {a: {model: p, template: t.j2, inputs: {question: str}, outputs: {x: str}, max_tokens: 2}}
program: {inputs: {question: str}, steps: [{call: a}], outputs: {x: "{{ a.x }}"}}
data:
  train: TRAIN
  dev: {dataset: ./repo, columns: {question: text, gold: label}}
  test: {dataset: ./repo, split: test, columns: {question: text, gold: label}}
metric: {type: exact, predicted: x, gold: gold}
compile: {strategy: []}
"""
TRAIN = "{dataset: ./repo, columns: {question: text, gold: label}, shuffle: 0}"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is a data set as the hub has them: Parquet files by split."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    load_hub.cache_clear()
    features = datasets.Features(
        {
            "text": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["cold", "warm"]),
            "at": datasets.Value("timestamp[s]"),
            "tags": datasets.List(datasets.Value("string")),
            "raw": datasets.Value("binary"),
        }
    )
    rows = {
        "text": ["a", "b", "c"],
        "label": [0, 1, 0],
        "at": [datetime(2024, 5, 1)] * 3,
        "tags": [["x"], [], ["y", "z"]],
        "raw": [b"1"] * 3,
    }
    whole = datasets.Dataset.from_dict(rows, features=features)
    (tmp_path / "repo/data").mkdir(parents=True)
    datasets.disable_progress_bars()
    whole.to_parquet(tmp_path / "repo/data/train-00000-of-00001.parquet")
    whole.select([1]).to_parquet(tmp_path / "repo/data/test-00000-of-00001.parquet")
    (tmp_path / "t.j2").write_text("{% user %}{{ question }}{% enduser %}")
    return tmp_path


def spec(home: Path, train: str = TRAIN, model: str = "nowhere") -> LoadedSpec:
    (home / "spec.yaml").write_text(SPEC.replace("TRAIN", train).replace("MODEL", model))
    return load(home / "spec.yaml")


def test_rows_are_plain_data_under_the_names_that_the_spec_gives(home: Path) -> None:
    first, *_ = load_split(spec(home), "dev")
    assert first.row == {"question": "a", "gold": "cold", "at": "2024-05-01T00:00:00", "tags": ["x"]}
    assert [example.row["gold"] for example in load_split(spec(home), "test")] == ["warm"]
    assert sorted(example.id for example in load_split(spec(home), "train")) == ["0", "1", "2"]
    json.dumps([example.row for example in load_split(spec(home), "train")])


def test_parts_of_a_split_and_files_of_json_lines(home: Path) -> None:
    assert len(load_split(spec(home, TRAIN.replace("shuffle: 0", "split: 'train[:2]'")), "train")) == 2
    shutil.rmtree(home / "repo")
    (home / "repo").mkdir()
    (home / "repo/train.jsonl").write_text('{"text": "a", "label": "x"}\n{"text": "b", "label": "y"}\n')
    load_hub.cache_clear()
    assert [e.row for e in load_split(spec(home), "dev")] == [
        {"question": "a", "gold": "x"},
        {"question": "b", "gold": "y"},
    ]


def test_columns_of_a_file_are_renamed_too(home: Path) -> None:
    (home / "rows.jsonl").write_text('{"text": "a", "label": "x", "n": 1}\n')
    found = load_split(spec(home, "{file: rows.jsonl, columns: {question: text, gold: label}, id: n}"), "train")
    assert found[0].id == "1" and found[0].row == {"n": 1, "question": "a", "gold": "x"}


@pytest.mark.parametrize(
    ("train", "expected"),
    [
        ("{dataset: ./repo, split: validation}", 'spec.yaml:7:35: error: ./repo: Unknown split "validation"'),
        ("{dataset: ./repo, config: nope}", "spec.yaml:7:36: error: ./repo: BuilderConfig 'nope' not found"),
        ("{dataset: ./rep}", "spec.yaml:7:20: error: ./rep: there is no such folder"),
        ("{dataset: ./repo, columns: {question: words}}", "not every row of ./repo has a column 'words'"),
        ("{dataset: ./repo}", "./repo has no column 'question'"),
    ],
)
def test_what_is_not_there_is_said_at_its_key(home: Path, train: str, expected: str) -> None:
    loaded = spec(home, train)
    said = "\n".join(problem.render() for problem in check(loaded))
    assert expected in said.replace(f"{loaded.folder}/", "")


@pytest.mark.parametrize(
    ("train", "expected"),
    [
        ("{id: n}", "rows come from either `file` or `dataset`"),
        ("{file: a.jsonl, dataset: o/n}", "rows come from either `file` or `dataset`"),
        ("{file: a.jsonl, split: test}", "`split` does nothing without `dataset`"),
    ],
)
def test_a_split_comes_from_one_place(home: Path, train: str, expected: str) -> None:
    with pytest.raises(InvalidError, match=expected):
        spec(home, train)


def test_without_a_network_it_says_what_to_do(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    loaded = spec(home, "{dataset: some/questions}")
    with pytest.raises(
        EnvironmentProblem, match=r"some/questions is not in the cache.*HF_HUB_OFFLINE is set.*hf download"
    ):
        load_split(loaded, "train")
    problems = [problem for problem in check(loaded) if "some/questions" in problem.message]
    assert {problem.cause for problem in problems} == {"environment"}


def test_a_missing_library_names_the_extra(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(EnvironmentProblem, match=r"pip install 'mmc\[data\]'"):
        load_split(spec(home), "train")


LOOK = """
import json, sys
from pathlib import Path
from mmc.build.lock import make_lock
from mmc.build.program import program_text
from mmc.data import load_split
from mmc.program.graph import Program
from mmc.spec import load

loaded = load(Path("spec.yaml"))
program = Program.build(loaded)
rows = {split: load_split(loaded, split) for split in ("train", "test")}
text = program_text(program, Path("build").resolve(), {"a": "t.j2"}, {}, "start")
found = [[example.row["gold"] for example in rows[split]] for split in rows]
print(json.dumps({"lock": make_lock(program, rows, {})["data"], "program": text, "rows": found}))
"""


def test_a_repository_of_the_hub_is_read_and_its_commit_pinned(home: Path, tiny_model_dir: Path) -> None:
    spec(home, model=str(tiny_model_dir))
    text = (home / "spec.yaml").read_text().replace("./repo", REPOSITORY)
    (home / "spec.yaml").write_text(
        text.replace("dataset: some/questions, split: test", "dataset: some/questions, revision: main, split: test")
    )
    hub = Hub()
    threading.Thread(target=hub.serve_forever, daemon=True).start()

    def look(offline: str) -> dict[str, Any]:
        place = {
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(home / "hf"),
            "HF_HUB_OFFLINE": offline,
            "PYTHONPATH": str(ROOT),
        }
        command = [sys.executable, "-c", LOOK]
        done = subprocess.run(
            command, cwd=home, env={**os.environ, **place}, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    found = look("0")
    hub.shutdown()
    hub.server_close()
    assert found["rows"] == [["y", "x"], ["x"]] or found["rows"] == [["x", "y"], ["x"]]
    for split in ("train", "test"):
        assert found["lock"][split] == found["lock"][split] | {"dataset": REPOSITORY, "revision": COMMIT}
    assert found["program"].count(f"revision: {COMMIT}") + found["program"].count(f'revision: "{COMMIT}"') == 3
    assert look("1") == found, "what was loaded once needs no network"


def test_a_build_reads_the_same_rows(home: Path, tiny_model_dir: Path) -> None:
    loaded = spec(home, model=str(tiny_model_dir))
    build = compile_spec(CompileJob(loaded, home / "build", home / "runs")).build
    again = load(build)
    assert again.spec.data is not None and again.resolve(again.spec.data.train.dataset or "") == home / "repo"
    assert load_split(again, "train") == load_split(loaded, "train")
    lock = json.loads((build / "mmc.lock").read_text())
    assert lock["data"]["test"]["rows"] == 1 and "revision" not in lock["data"]["test"]
