"""`mmc verify`: what was changed in a build, or under it, is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmc.build.verify import verify
from mmc.cli import execute
from mmc.compile import CompileJob, compile_spec
from mmc.spec import load


@pytest.fixture
def build(folder: Path) -> Path:
    spec = load(folder / "spec.yaml", ["compile.strategy=[weights]", "compile.weights.steps=1"])
    return compile_spec(CompileJob(spec, folder / "build", folder / "runs")).build


def changed(build: Path) -> dict[str, str]:
    return {one.name: one.verdict for one in verify(build) if one.verdict != "ok"}


def test_each_thing_that_changes_is_named(folder: Path, build: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = {one.name for one in verify(build)}
    assert names == {
        "templates.query", "templates.pick", "adapters.shared", "tools.search.corpus", "data.train", "data.dev", "data.test"
    }  # fmt: skip
    assert changed(build) == {} and execute(["verify", str(build)]) == 0
    template = build / "templates/query.j2"
    template.write_text(template.read_text() + " ")
    assert changed(build) == {"templates.query": "changed"}
    weights = build / "adapters/shared/adapter_model.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[-1] ^= 1
    weights.write_bytes(raw)
    rows = (folder / "rows.jsonl").read_text()
    (folder / "rows.jsonl").write_text(rows.replace("which animal 19", "which beast 19"))
    assert changed(build) == {"templates.query": "changed", "adapters.shared": "changed", "data.test": "changed"}
    weights.unlink()
    (folder / "docs.jsonl").unlink()
    assert {k: v for k, v in changed(build).items() if v == "missing"} == {
        "adapters.shared": "missing",
        "tools.search.corpus": "missing",
    }
    capsys.readouterr()
    assert execute(["verify", str(build)]) == 3
    assert "templates.query      changed" in capsys.readouterr().out


def test_data_behind_an_unset_variable_are_unknown_not_wrong(
    folder: Path, build: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (build / "program.yaml").read_text()
    (build / "program.yaml").write_text(text.replace("../../../rows.jsonl", "${env:ROWS_FOLDER}/rows.jsonl"))
    monkeypatch.delenv("ROWS_FOLDER", raising=False)
    assert {name for name, verdict in changed(build).items() if verdict == "unknown"} == {
        "data.train", "data.dev", "data.test"
    }  # fmt: skip
    assert execute(["verify", str(build)]) == 0
    monkeypatch.setenv("ROWS_FOLDER", str(folder))
    assert changed(build) == {}


def test_a_spec_is_no_build(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["verify", str(folder)]) == 3
    assert "there is no mmc.lock here; verify takes a build folder" in capsys.readouterr().err
