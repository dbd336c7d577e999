"""`mmc diff`: a build against its spec, and against another build."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmc.build.diff import diff
from mmc.cli import execute
from mmc.compile import CompileJob, compile_spec
from mmc.spec import load


@pytest.fixture
def build(folder: Path) -> Path:
    spec = load(folder / "spec.yaml", ["compile.strategy=[weights]", "compile.weights.steps=2"])
    return compile_spec(CompileJob(spec, folder / "build", folder / "runs")).build


def test_a_build_differs_from_its_spec_by_adapters_and_scores_alone(folder: Path, build: Path) -> None:
    (folder / "spec.yaml").write_text((build / "program.yaml").read_text().split("adapters:")[0])
    for name in ("query", "pick"):
        (folder / "templates").mkdir(exist_ok=True)
        (folder / f"templates/{name}.j2").write_text((build / f"templates/{name}.j2").read_text())
    found = diff(folder / "spec.yaml", build)
    assert found.keys == () and found.prompts == ()
    assert [change.key for change in found.adapters] == ["query", "pick"]
    after = found.adapters[0].after
    assert found.adapters[0].before is None and (after["adapter"], after["rank"], after["alpha"]) == (
        "shared",
        16,
        32.0,
    )
    assert after["sha256"] == json.loads((build / "mmc.lock").read_text())["adapters"]["shared"]
    stages = json.loads((build / "scores.json").read_text())["stages"]
    assert found.scores is not None and found.scores.gain is not None and found.scores.own_start
    assert found.scores.gain.mean == pytest.approx(sum(stages["weights"]) / 6 - sum(stages["start"]) / 6)


def test_words_keys_and_examples_that_changed_are_named(
    folder: Path, build: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = folder / "other"
    other.mkdir()
    for file in build.rglob("*"):
        if file.is_file():
            target = other / file.relative_to(build)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.read_bytes())
    template = other / "templates/query.j2"
    template.write_text(
        template.read_text().replace("Write.", "Write words.").replace("{{ question }}", "So: {{ question }}")
    )
    text = (other / "program.yaml").read_text()
    (other / "program.yaml").write_text(text.replace("max_tokens: 4", "max_tokens: 5").replace("../../../", "../"))
    scores = json.loads((other / "scores.json").read_text())
    before = list(scores["stages"].values())[-1]
    scores["stages"] = {"start": [1.0 - value for value in before]}
    (other / "scores.json").write_text(json.dumps(scores))
    found = diff(build, other)
    assert [(c.key, c.before, c.after) for c in found.keys] == [("modules.query.max_tokens", 4, 5)]
    (prompt,) = found.prompts
    assert prompt.module == "query" and set(prompt.slots) == {"instruction", ""}
    assert prompt.slots["instruction"] == (("removed", "Write."), ("added", "Write words."))
    assert ("added", "So: ") in prompt.slots[""] or ("added", " So:") in prompt.slots[""]
    assert found.scores is not None
    assert len(found.scores.won) == before.count(0.0) and len(found.scores.lost) == before.count(1.0)
    assert execute(["diff", str(build), str(other)]) == 0
    said = capsys.readouterr().out
    for part in (
        "modules.query.max_tokens: 4 -> 5",
        "[-Write.-]{+Write words.+}",
        "prompt of query, slot instruction:",
        "score: ",
    ):
        assert part in said
    assert execute(["diff", str(build), str(build), "--json"]) == 0
    plain = json.loads(capsys.readouterr().out)
    assert plain["keys"] == plain["prompts"] == plain["adapters"] == []
    assert plain["scores"]["gain"]["mean"] == 0.0


def test_scores_on_other_examples_are_not_paired(folder: Path, build: Path) -> None:
    spec = load(folder / "spec.yaml", ["compile.strategy=[]", "data.test={file: rows.jsonl, part: [0.5, 0.8]}"])
    other = compile_spec(CompileJob(spec, folder / "elsewhere", folder / "runs")).build
    found = diff(build, other)
    assert found.scores is not None and found.scores.gain is None and found.scores.won == ()
    assert {change.key for change in found.keys} >= {"data.test.part"}
