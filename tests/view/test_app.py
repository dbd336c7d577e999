"""The pages of a real run, without a browser."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from mmc.view.app import make_app
from mmc.view.groups import Filter, summary
from mmc.view.lines import Lines
from mmc.view.runs import find_runs
from mmc.view.search import shown_search


def client(root: Path) -> TestClient:
    return TestClient(make_app(root), base_url="http://localhost")


def digest(folder: Path) -> dict[str, tuple[str, int]]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(p): (hashlib.sha256(p.read_bytes()).hexdigest(), p.stat().st_mtime_ns) for p in files}


def links(html: str) -> set[str]:
    return set(re.findall(r'(?:href|data-src)="(/[^"]*)"', html))


def test_every_page_that_a_page_links_to_is_there_and_nothing_is_written(runs: Path) -> None:
    before, web = digest(runs), client(runs)
    seen, waiting = set[str](), {"/"}
    while waiting:
        address = waiting.pop()
        seen.add(address)
        answer = web.get(address)
        assert answer.status_code == 200, address
        if "html" in answer.headers["content-type"]:
            waiting |= links(answer.text) - seen
    assert len(seen) > 40 and any("/rollouts/2-weights/0" in address for address in seen)
    assert any("/traces/" in address for address in seen)
    assert digest(runs) == before


def test_a_trace_tells_how_likely_tokens_were_where_they_were_asked_for(run: Path, runs: Path) -> None:
    scoring = next((run / "scores").glob("*.jsonl"))
    row = json.loads(scoring.read_text().splitlines()[0])
    page = client(runs).get(f"/run/{run.name}/traces/{scoring.stem}/0").text
    asked, silent = (next(c for c in row["calls"] if c["module"] == name) for name in ("query", "pick"))
    assert "tokens" not in silent and page.count('class="tokens"') == 1
    shown = re.findall(r'<span class="d(\d)" title="([\d.]+)">', page)
    chances = [math.exp(one["logprob"]) for one in asked["tokens"]]
    assert [float(chance) for _, chance in shown] == pytest.approx(chances, abs=5e-4)
    assert [int(doubt) for doubt, _ in shown] == [(c < 0.9) + (c < 0.5) + (c < 0.1) for c in chances]


def test_a_page_from_elsewhere_is_refused(runs: Path) -> None:
    web = client(runs)
    for host, code in (("localhost:8000", 200), ("127.0.0.1", 200), ("mmc.example", 400), ("127.0.0.1.example", 400)):
        assert web.get("/", headers={"host": host}).status_code == code, host
    assert web.post("/").status_code == 405
    policy = web.get("/").headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy


@pytest.mark.parametrize(
    "path", ["/run/%2e%2e", "/run/x/rollouts/y", "/run/RUN/rollouts/%2e%2e", "/run/RUN/traces/%2e%2e"]
)
def test_only_what_is_found_by_looking_can_be_named(run: Path, path: str) -> None:
    assert client(run.parent).get(path.replace("RUN", run.name)).status_code == 404


def test_texts_of_a_run_are_escaped(run: Path) -> None:
    file = run / "2-weights/training/rollouts.jsonl"
    line = json.loads(file.read_text().splitlines()[0])
    line["members"][0]["calls"][0]["completion"] = "<script>alert(1)</script>"
    file.write_text(json.dumps(line) + "\n")
    page = client(run.parent).get(f"/run/{run.name}/rollouts/2-weights/0").text
    assert "<script>alert" not in page and "&lt;script&gt;alert" in page


def test_one_run_can_be_named_itself(run: Path) -> None:
    answer = client(run).get("/")
    assert answer.url.path == f"/run/{run.name}" and "Held-out scores" in answer.text


def test_the_state_of_a_run(run: Path) -> None:
    (found,) = find_runs(run.parent)
    assert (
        found.status == "done" and found.name == "tiny" and [s.label for s in found.stages()] == ["prompts", "weights"]
    )
    about = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**about, "state": "running"}))
    (run / "lock").write_text(str(os.getpid()))
    assert found.status == "running"
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    (run / "lock").write_text(str(gone.pid))
    assert found.status == "interrupted"
    assert "goes on from where it was" in client(run.parent).get(f"/run/{run.name}").text
    (run / "lock").unlink()
    shutil.rmtree(run / "2-weights")
    assert found.waiting() == ["weights"]
    (run / "run.json").unlink()
    (run / "stages.json").unlink()
    assert found.status == "unknown" and client(run.parent).get(f"/run/{run.name}").status_code == 200


def test_the_time_left_counts_from_where_the_work_was_resumed(run: Path) -> None:
    (found,) = find_runs(run.parent)
    now = datetime.now(UTC)
    about = {"what": "mmGRPO", "total": 100, "done": 60, "first": 50, "detail": "", "at": now.isoformat()}
    (run / "progress.json").write_text(json.dumps({**about, "began": (now - timedelta(seconds=100)).isoformat()}))
    progress = found.progress
    assert progress is not None and 380 < progress["left"] <= 400
    (run / "progress.json").write_text(json.dumps({**about, "done": 100, "began": now.isoformat()}))
    assert found.progress is not None and found.progress["left"] is None
    (run / "progress.json").write_text('{"what": ')
    assert found.progress is None


def test_the_cells_of_an_ablation_are_runs_too(run: Path) -> None:
    shutil.copytree(run, run.parent / "cell")
    shutil.move(run.parent / "cell", run / "matrix/prompts-0")
    assert {found.id for found in find_runs(run.parent)} == {run.name, f"{run.name}~matrix~prompts-0"}
    assert client(run.parent).get(f"/run/{run.name}~matrix~prompts-0").status_code == 200


def test_what_search_tried_is_read_from_its_journal_before_it_has_a_result(run: Path) -> None:
    stage = run / "1-prompts"
    result = json.loads((stage / "result.json").read_text())
    journal = Lines(stage / "search/journal.jsonl", dict)
    meanwhile, after = shown_search(None, journal), shown_search(result, journal)
    assert meanwhile is not None and after is not None
    told = [[(t["what"], t["score"], t["tokens"]) for t in s["trials"] if t["score"]] for s in (meanwhile, after)]
    assert told[0] == told[1] and len(told[0]) > 1


def test_groups_can_be_narrowed_down(run: Path) -> None:
    lines = Lines(run / "2-weights/training/rollouts.jsonl", summary).all()
    assert [line.summary.step for line in Filter().of(lines)] == sorted(
        (one.summary.step for one in lines), reverse=True
    )
    one = Filter(step="2", module="pick").of(lines)
    assert one and {(line.summary.step, line.summary.module) for line in one} == {(2, "pick")}
    cut = Filter(kind="cut").of(lines)
    assert cut and all(line.summary.left_out["not_selected"] == 1 for line in cut)
    trained = Filter(kind="trained").of(lines)
    assert trained and all((line.summary.spread or 0) > 0 for line in trained)
    example = lines[0].summary.example
    assert {line.summary.example for line in Filter(example=example).of(lines)} == {example}
    assert Filter(kind="filled").of(lines) == []


def test_the_command_serves_and_prints_its_address(run: Path) -> None:
    import urllib.request

    process = subprocess.Popen(
        [sys.executable, "-m", "mmc", "view", str(run.parent)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/", address)
        with urllib.request.urlopen(address) as answer:
            assert b"tiny" in answer.read()
    finally:
        process.send_signal(2)
        _, shown = process.communicate(timeout=20)
    assert process.returncode == 0 and "Traceback" not in shown


def test_what_cannot_be_viewed_is_said(tmp_path: Path) -> None:
    found = subprocess.run(
        [sys.executable, "-m", "mmc", "view", str(tmp_path / "no")], capture_output=True, text=True, check=False
    )
    assert found.returncode == 2 and "there is no such folder" in found.stderr
