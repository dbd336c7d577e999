"""Old specs, brought to the present version: NAME.yaml in `old/` becomes NAME.txt, word for word (MMC_REWRITE_GOLDEN=1)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mmc.cli import execute
from mmc.errors import InvalidError
from mmc.program.check import check
from mmc.spec import load
from mmc.spec.marks import parse
from mmc.spec.migrate import CURRENT, STEPS, migrate
from mmc.spec.rewrite import remove, rename

REPO = Path(__file__).parents[2]
OLD = sorted((Path(__file__).parent / "old").glob("*.yaml"))


@pytest.mark.parametrize("path", OLD, ids=lambda path: path.stem)
def test_an_old_spec_becomes_a_present_one(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = migrate(path.read_text(), path.name)
    golden = path.with_suffix(".txt")
    if os.environ.get("MMC_REWRITE_GOLDEN"):
        golden.write_text(found.after)
    assert found.after == golden.read_text()
    assert (found.old, found.new) == (0, CURRENT)
    (tmp_path / path.name).write_text(path.read_text())
    with pytest.raises(InvalidError, match="mmc migrate"):
        load(tmp_path / path.name)
    monkeypatch.chdir(tmp_path)
    assert execute(["migrate", path.name]) == 0
    load(tmp_path / path.name)


def test_the_first_helpdesk_spec_has_no_problem_once_it_is_migrated(tmp_path: Path) -> None:
    for name in ("templates", "examples"):
        (tmp_path / name).symlink_to(REPO / name)
    (tmp_path / "specs").mkdir()
    spec = tmp_path / "specs/helpdesk.yaml"
    spec.write_text(migrate((Path(__file__).parent / "old/helpdesk_without_version.yaml").read_text(), "x").after)
    assert check(load(spec)) == ()


def test_every_version_has_a_step_to_the_next() -> None:
    assert list(STEPS) == list(range(CURRENT))


def test_a_dry_run_prints_a_diff_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = tmp_path / "spec.yaml"
    old = (Path(__file__).parent / "old/weights_in_a_block.yaml").read_text()
    spec.write_text(old)
    assert execute(["migrate", str(spec), "--dry-run"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert (
        "+mmc: 1" in said
        and "-    decay: true   # to a tenth" in said
        and "+    schedule: linear   # to a tenth" in said
    )
    assert spec.read_text() == old
    assert execute(["migrate", str(spec)]) == 0
    assert [p.name for p in tmp_path.iterdir()] == ["spec.yaml"]
    assert "version 0 -> 1" in capsys.readouterr().out
    assert execute(["migrate", str(spec)]) == 0
    assert "nothing to do" in capsys.readouterr().out


def test_what_has_no_counterpart_and_what_is_too_new_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = tmp_path / "spec.yaml"
    spec.write_text("mmc: 0\nmetric: {type: f1, predicted: a, gold: b, ignore: [c]}\n")
    assert execute(["migrate", str(spec)]) == 3
    assert "spec.yaml:2:43: error: F1 leaves no words out" in capsys.readouterr().err
    assert "ignore: [c]" in spec.read_text()
    spec.write_text(f"mmc: {CURRENT + 1}\nname: x\n")
    assert execute(["migrate", str(spec)]) == 3
    assert "pip install --upgrade mmc" in capsys.readouterr().err


TEXT = """\
a:
  b: 1   # one
  # two
  c: {d: 2, e: 3}
  f:
    - g: 4  # four
      h: 5
i:
  j: [1]
"""


@pytest.mark.parametrize(
    ("path", "old", "new"),
    [
        (("a", "b"), "  b: 1   # one\n", ""),
        (("a", "c", "d"), "{d: 2, e: 3}", "{e: 3}"),
        (("a", "c", "e"), "{d: 2, e: 3}", "{d: 2}"),
        (("a", "f", 0, "g"), "    - g: 4  # four\n      h: 5\n", "    - h: 5\n"),
        (("a", "f", 0, "h"), "      h: 5\n", ""),
        (("a", "f"), "  f:\n    - g: 4  # four\n      h: 5\n", ""),
        (("i", "j"), "  j: [1]\n", "  {}\n"),
        (("i",), "i:\n  j: [1]\n", ""),
    ],
)
def test_an_entry_is_removed_and_the_rest_stays(path: tuple[str | int, ...], old: str, new: str) -> None:
    assert old in TEXT
    found = remove(TEXT, path)
    assert found == TEXT.replace(old, new)
    assert parse(found, "t").data is not None


def test_a_key_is_renamed_in_its_place() -> None:
    assert rename(TEXT, ("a", "b"), "bee") == TEXT.replace("  b: 1", "  bee: 1")
    assert rename(TEXT, ("a", "c", "e"), "x") == TEXT.replace("e: 3", "x: 3")
