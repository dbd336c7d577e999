"""What `mmc check` says of broken specs, word for word: NAME.yaml in `broken/`, and the expected output in NAME.txt.

To add one: put a spec there and run this file with MMC_REWRITE_GOLDEN=1, which writes what is printed now. Then read it.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mmc.cli import execute

FOLDER = Path(__file__).parent / "broken"
SPECS = sorted(FOLDER.glob("*.yaml"))


@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.stem)
def test_a_broken_spec_says_what_is_wrong(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(FOLDER)
    monkeypatch.delenv("SHOP_DATA", raising=False)
    code = execute(["check", path.name])
    said = capsys.readouterr()
    printed = f"{said.err}{said.out}exit code {code}\n"
    golden = path.with_suffix(".txt")
    if os.environ.get("MMC_REWRITE_GOLDEN"):
        golden.write_text(printed)
    assert printed == golden.read_text(), "if this is how it should be: MMC_REWRITE_GOLDEN=1"
    assert "error: " in said.err or "warning: " in said.err
    assert "this is a bug in mmc" not in said.err


def test_every_expected_output_has_its_spec() -> None:
    assert {p.stem for p in FOLDER.glob("*.txt")} == {p.stem for p in SPECS}
