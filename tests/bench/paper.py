"""The paper's three tasks on a small model: start, prompts, weights, and prompts then weights; written as a page.

    python tests/bench/paper.py [--seeds 0 1] [--parallel 2] [--only-report]

Every run is one `mmc compile` of a shipped spec, as in results.py, whose runs of `weights` alone it shares; what is there is not
measured again, and an interrupted run goes on where it stopped. Beside them Banking77 by a program with retrieval, and DSPy's
start and BootstrapFewShot over vLLM, where those are installed (`make paper` does it). Writes examples/paper/README.md.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import results
from classify import server
from grpo_step import REPO, SOURCE

from mmc.data import load_split
from mmc.engine.weights import find
from mmc.metric import Interval, interval, paired
from mmc.program.graph import Program
from mmc.spec import load

OUT = REPO / "examples/paper"
TASKS = {"banking77": "Banking77", "papillon": "PAPILLON", "hover-400": "HoVer"}
ARMS = ("start", "prompts", "weights", "prompts + weights")
DSPY_COUNT, DSPY_TRAIN = 120, 60
Json = dict[str, Any]
Scores = list[list[float]]
"""By seed, by test example."""


def arms(task: str, seeds: Sequence[int]) -> dict[str, Scores]:
    """Scores of each arm, by seed; nothing for an arm whose compile is not there. The start is the same with every seed."""
    found: dict[str, Scores] = {arm: [] for arm in ARMS}
    for seed in seeds:
        alone, both = results.results(task, [seed]), results.results(f"{task}-both", [seed])
        for one in (both or alone)[:1]:
            found["start"].append(one["scores"]["start"])
        for one in both:
            found["prompts"].append(one["scores"]["prompts"])
            found["prompts + weights"].append(one["scores"]["weights"])
        for one in alone:
            found["weights"].append(one["scores"]["weights"])
    return found


def mean(scores: Scores) -> list[float]:
    return [fmean(values) for values in zip(*scores, strict=True)]


def shown(found: Interval, sign: str = "") -> str:
    return f"{found.mean:{sign}.3f} [{found.low:{sign}.3f}, {found.high:{sign}.3f}]"


def table(seeds: Sequence[int]) -> list[str]:
    lines = ["| task | start | prompts | weights | prompts, then weights | gain |", "|---|---|---|---|---|---|"]
    means: dict[str, list[float]] = {arm: [] for arm in ARMS}
    for task, title in TASKS.items():
        found = arms(task, seeds)
        cells = [cell(found[arm]) for arm in ARMS]
        for arm in ARMS:
            means[arm] += [fmean(mean(found[arm]))] if found[arm] else []
        whole = found["prompts + weights"]
        gain = shown(paired(mean(found["start"][: len(whole)]), mean(whole)), "+") if whole else ""
        lines.append(f"| {title} | {' | '.join(cells)} | {gain} |")
    if all(len(found) == len(TASKS) for found in means.values()):
        cells = [f"{fmean(means[arm]):.3f}" for arm in ARMS]
        gain = f"{fmean(means['prompts + weights']) - fmean(means['start']):+.3f}"
        lines.append(f"| **mean** | {' | '.join(cells)} | {gain} |")
    return lines


def cell(scores: Scores) -> str:
    """The mean over seeds and its interval, then the seeds; or that there is none."""
    return shown(interval(mean(scores))) + by_seed(scores) if scores else "not measured yet"


def by_seed(scores: Scores) -> str:
    values = [f"{fmean(one):.3f}" for one in scores]
    if len(values) == 1:
        return " (one seed)"
    return f" ({', '.join(values)})" if len(set(values)) > 1 else ""


def parts(seeds: Sequence[int]) -> list[str]:
    """PAPILLON's two halves, means over seeds."""
    lines = ["| PAPILLON | quality | private |", "|---|---|---|"]
    stages = {
        "prompts": ("papillon-both", 1),
        "weights": ("papillon", 1),
        "prompts, then weights": ("papillon-both", 2),
    }
    for label, (task, index) in {"start": ("papillon-both", 0), **stages}.items():
        found = [one["stages"][index]["parts"] for one in results.results(task, seeds)]
        if found:
            lines.append(
                f"| {label} | {fmean(p['quality'] for p in found):.3f} | {fmean(p['private'] for p in found):.3f} |"
            )
    return lines


def notes(seeds: Sequence[int]) -> list[str]:
    """What became of each stage."""
    lines = []
    for task, title in TASKS.items():
        for one in results.results(f"{task}-both", seeds):
            for stage in one["stages"][1:]:
                lines.append(
                    f"- {title}, seed {one['seed']}, {stage['stage']}: {stage['note']} "
                    f"({stage['seconds'] / 60:.0f} min{results.accelerator(one)})"
                )
    return lines


def retrieval(seeds: Sequence[int]) -> list[str]:
    """The program with a look-up, against looking up alone on the same test queries."""
    loaded = load(REPO / results.TASKS["banking77-retrieval"].spec)
    tool, examples = Program.build(loaded).tools["similar"], load_split(loaded, "test")
    nearest, vote = [], []
    for example in examples:
        labels = [row["label"] for row in tool.search(example.row["text"])][:5]  # type: ignore[attr-defined]
        nearest.append(float(labels[:1] == [example.row["label"]]))
        # Of equally frequent intents, the one of the most similar query.
        vote.append(float(bool(labels) and max(labels, key=labels.count) == example.row["label"]))
    lines = ["| Banking77 with retrieval | exact match |", "|---|---|"]
    lines += [f"| nearest query's intent, no model | {shown(interval(nearest))} |"]
    lines += [f"| vote of the five nearest, no model | {shown(interval(vote))} |"]
    found = results.results("banking77-retrieval", seeds)
    lines += [] if found else ["| the program | not measured yet |"]
    for stage in found[0]["scores"] if found else ():
        label = "the program, untrained" if stage == "start" else f"after {stage}"
        values = [one["scores"][stage] for one in found]
        gain = shown(paired(nearest, mean(values)), "+")
        lines.append(f"| {label} | {shown(interval(mean(values)))}{by_seed(values)}, {gain} over the nearest query |")
    return lines


def dspy(measure: bool) -> list[str]:
    """DSPy's start and BootstrapFewShot beside ours, on the same test queries and model."""
    file = results.FOUND / "dspy-banking77.json"
    sides = [REPO / ".peers" / side / "bin/python" for side in ("dspy", "vllm")]
    if not file.exists() and measure and all(side.exists() for side in sides):
        folder = str(find([SOURCE], Path).folder)
        script = Path(__file__).parent / "step/dspy_bootstrap.py"
        with server(folder, "bfloat16") as address:
            command = [str(sides[0]), str(script), address, "smollm2", str(DSPY_COUNT), str(DSPY_TRAIN)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        file.write_text(done.stdout.splitlines()[-1] + "\n")
    if not file.exists():
        return ["Not measured yet."]
    found: Json = json.loads(file.read_text())
    lines = [f"| Banking77, the first {DSPY_COUNT} test queries | exact match |", "|---|---|"]
    lines += [f"| DSPy, start | {shown(interval(found['start']))} |"]
    lines += [f"| DSPy, BootstrapFewShot ({found['demos']} demonstrations) | {shown(interval(found['bootstrap']))} |"]
    ours: Mapping[str, Scores] = arms("banking77", [0])
    for arm in (arm for arm in ARMS if ours[arm]):
        lines.append(f"| mmc, {arm}, seed 0 | {shown(interval(ours[arm][0][:DSPY_COUNT]))} |")
    return lines


def report(seeds: Sequence[int], measure: bool) -> None:
    text = (Path(__file__).parent / "paper.md").read_text()
    sections = {
        "TABLE": table(seeds),
        "PARTS": parts(seeds),
        "NOTES": notes(seeds),
        "RETRIEVAL": retrieval(seeds),
        "DSPY": dspy(measure),
    }
    for name, lines in sections.items():
        text = text.replace(f"<!-- {name} -->", "\n".join(lines))
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "README.md").write_text(text)
    print(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--parallel", type=int, default=2)
    parser.add_argument("--only-report", action="store_true", help="write the page from the runs that are there")
    options = parser.parse_args()
    if "MMC_DATA" not in os.environ:
        raise SystemExit("the public data sets are needed: export MMC_DATA=... (the folder that holds banking77/)")
    for folder in (results.WORK, results.FOUND):
        folder.mkdir(parents=True, exist_ok=True)
    if not options.only_report:
        results.make_all(["banking77", "hover-400", *results.PAPER], options.seeds, options.parallel)
    report(range(10), not options.only_report)  # whichever seeds there are


if __name__ == "__main__":
    main()
