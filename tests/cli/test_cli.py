"""The command line in a process of its own: exit codes, messages, what is loaded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).parents[2]


def mmc(*arguments: str, cwd: Path = REPO, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "MMC_DATA": "/nowhere", "NO_COLOR": "1", **environment}
    command = [sys.executable, "-m", "mmc", *arguments]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=120, check=False)


SPEC = """\
mmc: 1
name: tiny
models:
  policy: {type: local, source: "path:SOURCE"}
modules:
  answer:
    model: policy
    template: answer.j2
    inputs: {question: str}
    outputs: {answer: {enum: [red, blue]}}
    constrain: true
program:
  inputs: {question: str}
  steps:
    - call: answer
  outputs: {answer: "{{ answer.answer }}"}
data:
  train: {file: rows.jsonl}
  dev: {file: rows.jsonl}
  test: {file: rows.jsonl}
metric: {type: exact, predicted: answer, gold: answer}
"""


@pytest.fixture
def folder(tmp_path: Path, tiny_model_dir: Path) -> Path:
    (tmp_path / "spec.yaml").write_text(SPEC.replace("SOURCE", str(tiny_model_dir)))
    (tmp_path / "answer.j2").write_text("{{ question }}")
    rows = [{"question": f"q{i}", "answer": "red" if i % 2 else "blue"} for i in range(6)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_help_check_and_import_load_nothing_heavy() -> None:
    code = """
import sys
from mmc.cli import execute
assert execute(["--help"]) == 0
assert not {"pydantic", "yaml", "jinja2", "rich"} & set(sys.modules), "help is quick"
assert execute(["check", "specs/helpdesk.yaml"]) == 0
optional = "torch transformers litellm optuna peft fastapi uvicorn mcp httpx prometheus_client ray"
heavy = set(optional.split()) & set(sys.modules)
assert not heavy, heavy
"""
    found = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr


def test_run_and_eval_print_results_on_stdout_alone(folder: Path) -> None:
    ran = mmc("run", "spec.yaml", "--input", "question=hello", cwd=folder)
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["answer"] in ("red", "blue")
    scored = mmc("eval", "spec.yaml", "--split", "test", "--limit", "5", "--json", cwd=folder)
    found = json.loads(scored.stdout)
    assert set(found) == {"score", "low", "high", "n", "split", "failures"} and found["n"] == 5
    assert 0 <= found["low"] <= found["score"] <= found["high"] <= 1
    assert "scoring test 5/5" in scored.stderr


def test_a_model_that_does_not_run_on_the_trie_is_said_once_in_one_line(folder: Path, mamba_dir: Path) -> None:
    spec = SPEC.replace("SOURCE", str(mamba_dir))
    (folder / "spec.yaml").write_text(spec)
    scored = mmc("eval", "spec.yaml", "--split", "test", "--json", cwd=folder)
    assert scored.returncode == 0 and json.loads(scored.stdout)["n"] == 6
    (line,) = [line for line in scored.stderr.splitlines() if "padded batches" in line]
    assert line.startswith("warning: MambaForCausalLM does not run on the trie")


def test_render_prints_the_exact_messages(folder: Path) -> None:
    assert "[user]\nq0\n" in mmc("render", "spec.yaml", cwd=folder).stdout
    assert "[user]\nhello\n" in mmc("render", "spec.yaml", "--input", "question=hello", cwd=folder).stdout


def broken(folder: Path, old: str, new: str) -> None:
    text = (folder / "spec.yaml").read_text()
    assert old in text
    (folder / "spec.yaml").write_text(text.replace(old, new, 1))


BAD = [
    ("question: str}\n    outputs", "q: str}\n    outputs", 3, "answer.j2:1:4: error: the template uses 'question'"),
    ("name: tiny", "nme: tiny", 3, "spec.yaml:2:1: error: unknown key 'nme'. Did you mean 'name'?"),
    ("rows.jsonl", "rowz.jsonl", 3, "rowz.jsonl: there is no such file"),
    ("path:/", "path:/nowhere/", 4, "no source of the model is there"),
    ('"path:', '"hf:nobody/nothing', 4, "not in Hugging Face's cache, and HF_HUB_OFFLINE is set"),
]


@pytest.mark.parametrize(("old", "new", "code", "message"), BAD)
def test_bad_input_is_one_clear_message_and_writes_nothing(
    folder: Path, old: str, new: str, code: int, message: str
) -> None:
    broken(folder, old, new)
    before = {p.name for p in folder.iterdir()}
    found = mmc("compile", "spec.yaml", "--json", cwd=folder, HF_HUB_OFFLINE="1")
    assert found.returncode == code, found.stderr
    assert message in found.stderr and "Traceback" not in found.stderr and found.stdout == ""
    assert not (folder / "build").exists()
    assert {p.name for p in folder.iterdir()} - before <= {".mmc"}


def test_check_can_mark_lines_in_a_pull_request(folder: Path) -> None:
    (folder / "answer.j2").write_text("{{ question }}\n{{ questoin }}")
    found = mmc("check", "spec.yaml", "--format", "github", cwd=folder)
    assert found.returncode == 3
    assert found.stdout.startswith("::error file=answer.j2,line=2,col=4::the template uses 'questoin'")
    broken(folder, "name: tiny", "nme: tiny")
    found = mmc("check", "spec.yaml", "--format", "github", cwd=folder)
    assert found.returncode == 3 and "::error file=spec.yaml,line=2,col=1::unknown key 'nme'." in found.stdout
    from mmc.errors import Diagnostic

    odd = Diagnostic("a,b:c.yaml", 1, 0, "100%\nwrong", severity="warning").github()
    assert odd == "::warning file=a%2Cb%3Ac.yaml,line=1::100%25%0Awrong"


def test_quality_gates_fail_with_100(folder: Path) -> None:
    compiled = mmc("compile", "spec.yaml", "--set", "compile.strategy=[]", "--json", cwd=folder)
    assert compiled.returncode == 0, compiled.stderr
    build = json.loads(compiled.stdout)["build"]
    score = json.loads(compiled.stdout)["stages"][0]["score"]
    assert 0 < score < 1
    options = ["eval", "spec.yaml", "--split", "test"]
    assert mmc(*options, "--fail-under", str(score), cwd=folder).returncode == 0
    failed = mmc(*options, "--fail-under", "0.99", cwd=folder)
    assert failed.returncode == 100 and "quality gate: the score is lower than 0.99" in failed.stderr
    assert "test: " in failed.stdout, "the score is printed all the same"
    same = mmc(*options, "--baseline", build, "--json", cwd=folder)
    assert same.returncode == 0 and json.loads(same.stdout)["gain"] == {"mean": 0.0, "low": 0.0, "high": 0.0}
    better = Path(build) / "scores.json"
    kept = json.loads(better.read_text())
    better.write_text(json.dumps({**kept, "stages": {"start": [1.0] * 6}}))
    worse = mmc(*options, "--baseline", build, cwd=folder)
    assert worse.returncode == 100 and "the score is lower than that of" in worse.stderr
    other = mmc(*options, "--baseline", build, "--limit", "2", cwd=folder)
    assert other.returncode == 2 and "it was scored on other examples" in other.stderr and "scoring" not in other.stderr
    assert mmc(*options, "--baseline", ".", cwd=folder).returncode == 3


def test_options_can_be_set_in_the_environment(folder: Path) -> None:
    found = mmc("eval", "spec.yaml", "--json", cwd=folder, MMC_EVAL_SPLIT="test", MMC_EVAL_LIMIT="3")
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout)["split"] == "test" and json.loads(found.stdout)["n"] == 3


def test_a_missing_spec_and_a_wrong_command_line(folder: Path) -> None:
    found = mmc("check", "spce.yaml", cwd=folder)
    assert found.returncode == 3 and "Did you mean 'spec.yaml'?" in found.stderr
    assert mmc("chek", cwd=folder).returncode == 2
    assert mmc("eval", "spec.yaml", "--split", "tset", cwd=folder).returncode == 2
    assert mmc("run", "spec.yaml", cwd=folder).returncode == 2
    assert mmc("run", "spec.yaml", "--input", "question=x", "--set", "nonsense", cwd=folder).returncode == 3


def test_a_tool_that_raises_is_named(folder: Path) -> None:
    (folder / "tools.py").write_text("def boom(**a):\n    raise ValueError('no luck')\n")
    broken(folder, "modules:", 'tools: {boom: {type: python, function: "tools:boom"}}\nmodules:')
    broken(folder, "    - call: answer", "    - tool: boom\n    - call: answer")
    found = mmc("run", "spec.yaml", "--input", "question=x", cwd=folder)
    assert found.returncode == 2 and "add --trust" in found.stderr
    found = mmc("run", "spec.yaml", "--input", "question=x", "--trust", cwd=folder)
    assert found.returncode == 1 and "the tool boom failed: ValueError: no luck" in found.stderr
    assert "Traceback" not in found.stderr


def test_an_unset_variable_is_an_environment_problem() -> None:
    environment = {k: v for k, v in os.environ.items() if k != "MMC_DATA"}
    command = [sys.executable, "-m", "mmc", "check", "specs/banking77.yaml"]
    found = subprocess.run(command, cwd=REPO, env=environment, capture_output=True, text=True, check=False)
    assert (
        found.returncode == 4
        and "banking77.yaml:17:22: error: the environment variable MMC_DATA is not set" in found.stderr
    )


def test_a_crash_writes_a_log_and_shows_no_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from mmc.cli import execute
    from mmc.spec import schema

    def crash() -> None:
        raise RuntimeError("surprise")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(schema, "schema_text", crash)
    assert execute(["schema"]) == 1
    shown = capsys.readouterr().err
    assert "this is a bug in mmc: RuntimeError: surprise" in shown and "Traceback" not in shown
    log = next((tmp_path / ".mmc").glob("crash-*.log"))
    assert "Traceback" in log.read_text()


def test_trackers_that_are_unknown_or_missing_are_said_before_anything_is_done(folder: Path) -> None:
    found = mmc("compile", "spec.yaml", "--track", "tensorbord", cwd=folder)
    assert found.returncode == 2 and "there are tensorboard, trackio, wandb, mlflow" in found.stderr
    hidden = folder / "hidden"
    hidden.mkdir()
    (hidden / "sitecustomize.py").write_text("import sys\nsys.modules['wandb'] = None\n")
    found = mmc("compile", "spec.yaml", "--track", "wandb", cwd=folder, PYTHONPATH=f"{hidden}:{REPO}")
    assert found.returncode == 4 and "--track wandb needs wandb: pip install 'mmc[track]'" in found.stderr
    assert not (folder / ".mmc").exists()


def test_curves_reach_tensorboard_from_the_command_line(folder: Path) -> None:
    options = ["--set", "compile.strategy=[weights]", "--set", "compile.weights={steps: 2, examples: 2, rollouts: 4}"]
    found = mmc("compile", "spec.yaml", "--track", "tensorboard", "--json", *options, cwd=folder)
    assert found.returncode == 0, found.stderr
    assert "tensorboard: tensorboard --logdir" in found.stderr and json.loads(found.stdout)["stages"]
    (events,) = (folder / ".mmc/runs").glob("*/track/tensorboard/*/events*")
    assert b"weights/reward" in events.read_bytes() and b"ledger/calls" in events.read_bytes()
