"""`mmc init`: an example as a project, from a checkout and from an installed wheel."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mmc.build.example import EXAMPLES, write_example
from mmc.cli import execute
from mmc.errors import UsageError
from mmc.program.check import check
from mmc.spec import load

REPO = Path(__file__).parents[2]


def test_every_shipped_spec_is_an_example() -> None:
    assert set(EXAMPLES) == {path.stem for path in (REPO / "specs").glob("*.yaml")}


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_stands_by_itself(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMC_DATA", os.environ.get("MMC_DATA", "/nowhere"))
    files = write_example(name, tmp_path / "mine")
    assert files[0] == tmp_path / f"mine/{name}.yaml" and all(file.is_file() for file in files)
    text = files[0].read_text()
    assert "../" not in re.sub(r"#.*", "", text), "nothing leads out of the folder"
    comments = re.findall(r"#.*", (REPO / f"specs/{name}.yaml").read_text())
    assert re.findall(r"#.*", text) == comments, "comments stay"
    if "MMC_DATA" not in text or ("MMC_DATA" in os.environ and os.environ["MMC_DATA"] != "/nowhere"):
        assert check(load(files[0])) == ()


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/dev.jsonl").write_text("mine")
    with pytest.raises(UsageError, match=r"dev.jsonl is there already; nothing was written"):
        write_example("helpdesk", tmp_path)
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["dev.jsonl"]


def test_a_wrong_name_lists_the_examples(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["init", str(tmp_path / "x"), "--example", "helpdesc"]) == 2
    said = capsys.readouterr().err
    assert "Did you mean 'helpdesk'?" in said and all(name in said for name in EXAMPLES)
    assert not (tmp_path / "x").exists()


def test_an_installed_wheel_brings_its_examples(tmp_path: Path) -> None:
    """Built and installed without a network, run from an empty folder."""
    source, wheels, place, empty = (tmp_path / name for name in ("source", "wheels", "site", "empty"))
    for name in ("mmc", "specs", "templates", "examples/helpdesk"):
        shutil.copytree(REPO / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(REPO / name, source / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    options = ["--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "wheel", *options, "--wheel-dir", str(wheels), str(source)], check=True, capture_output=True)
    (wheel,) = wheels.glob("mmc-*.whl")
    subprocess.run([*pip, "install", *options, "--target", str(place), str(wheel)], check=True, capture_output=True)
    empty.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(place)}
    command = [sys.executable, "-m", "mmc", "init", "mine"]
    done = subprocess.run(command, cwd=empty, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-2:] == [
        "next: mmc check mine/helpdesk.yaml",
        "then: mmc compile mine/helpdesk.yaml",
    ]
    where = "import mmc; print(mmc.__file__)"
    used = subprocess.run([sys.executable, "-c", where], cwd=empty, env=environment, capture_output=True, text=True)
    assert used.stdout.startswith(str(place))
    checked = [sys.executable, "-m", "mmc", "check", "mine/helpdesk.yaml"]
    found = subprocess.run(checked, cwd=empty, env=environment, capture_output=True, text=True, check=False)
    assert found.stdout == "mine/helpdesk.yaml: ok (2 modules, 1 tool)\n", found.stderr
