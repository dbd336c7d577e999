"""What the repository promises: shipped specs load, README's blocks work, modules stay small."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from mmc.program.check import check
from mmc.spec import load
from mmc.spec.schema import schema_text

REPO = Path(__file__).parents[2]


def test_the_helpdesk_spec_has_no_problem() -> None:
    assert check(load(REPO / "specs/helpdesk.yaml")) == ()


@pytest.mark.skipif("MMC_DATA" not in os.environ, reason="needs the public data sets")
@pytest.mark.parametrize("name", ["banking77", "banking77_retrieval", "hover", "papillon"])
def test_the_specs_on_public_data_have_no_problem(name: str) -> None:
    assert check(load(REPO / f"specs/{name}.yaml")) == ()


def _blocks(page: str) -> list[tuple[str, str]]:
    """(kind, text) of the YAML and Jinja blocks of a page."""
    return re.findall(r"```(yaml|jinja)\n(.*?)```", (REPO / page).read_text(), re.DOTALL)


def test_the_specs_of_the_pages_have_no_problem(tmp_path: Path) -> None:
    (_, spec), (_, template) = _blocks("README.md")
    metric, search, training = (text for _, text in _blocks("examples/strategies/README.md"))
    server, sampler = (text for _, text in _blocks("examples/remote_models/README.md") if text.startswith("models:"))
    (tmp_path / "answer.j2").write_text(template)
    (tmp_path / "shown.j2").write_text(template)
    (tmp_path / "grade.j2").write_text("{{ answer }} {{ reference }}")
    row = json.dumps({"question": "grass?", "colour": "green"})
    (tmp_path / "rows.jsonl").write_text("\n".join([row.replace("?", f"{i}?") for i in range(10)]))
    head = spec[: spec.index("compile:")]
    writer = "models:\n  writer: {type: litellm, model: openai/gpt-4.1-mini}"
    grade = "modules:\n  grade: {model: policy, template: grade.j2, inputs: {answer: str, reference: str}, outputs: {good: bool}}"
    judged = re.sub(r"^metric: .*\n", metric, head, flags=re.MULTILINE).replace("modules:", grade)
    drawn = re.sub(r"^models:\n  .*\n", sampler, spec, flags=re.MULTILINE)
    asked = re.sub(r"^models:\n  .*\n", server, head, flags=re.MULTILINE).replace("model: policy", "model: large")
    for text in (spec, head + training, head.replace("models:", writer) + search, judged, drawn, asked):
        (tmp_path / "spec.yaml").write_text(text)
        assert check(load(tmp_path / "spec.yaml")) == ()


def test_the_schema_beside_the_specs_is_the_present_one_and_every_spec_names_it() -> None:
    assert (REPO / "specs/mmc.schema.json").read_text() == schema_text(), "run: mmc schema > specs/mmc.schema.json"
    for spec in (REPO / "specs").glob("*.yaml"):
        assert spec.read_text().startswith("# yaml-language-server: $schema=./mmc.schema.json\n"), spec.name


def test_helpdesk_data_is_what_its_readme_says() -> None:
    folder = REPO / "examples/helpdesk"
    rows = {p.stem: [json.loads(line) for line in p.read_text().splitlines()] for p in folder.glob("*.jsonl")}
    assert {name: len(found) for name, found in rows.items()} == {"articles": 61, "train": 244, "dev": 61, "test": 244}
    titles = {a["id"]: a["title"] for a in rows["articles"]}
    questions = [q for split in ("train", "dev", "test") for q in rows[split]]
    assert all(titles[q["article"]] == q["title"] for q in questions)
    assert len({q["question"].lower() for q in questions}) == len(questions) == len({q["id"] for q in questions})


def test_no_file_is_too_long() -> None:
    long = {p.name: n for p in (REPO / "mmc").rglob("*.py") if (n := len(p.read_text().splitlines())) > 400}
    assert not long


def test_every_command_of_the_readme_exists() -> None:
    from mmc.cli.app import app

    known = {command.name for command in app.registered_commands}
    assert set(re.findall(r"`mmc (\w+)", (REPO / "README.md").read_text())) <= known
