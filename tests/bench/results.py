"""Learning on real data, and rollouts as a tree against the paper's: measured, then written as a table and a picture.

    python tests/bench/results.py [--tasks banking77 hover ...] [--seeds 0 1 2] [--parallel 2] [--only-report]

Every run is one `mmc compile` of a shipped spec with another seed (and, for the tree, `weights.tree`), `--parallel` at a
time with one thread each. Scores are greedy, on held-out test data. What a run found is kept in examples/results/runs and not
measured again while it is there; an interrupted one goes on where it stopped. Writes README.md and tree.png in examples/results.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from mmc.data import Example, load_split
from mmc.metric import interval, paired
from mmc.spec import load

REPO = Path(__file__).parents[2]
WORK = REPO / ".mmc/results"
OUT = REPO / "examples/results"
FOUND = OUT / "runs"
CURVES_KEPT = ("step", "reward", "useful", "entropy", "sampled", "tokens", "seconds")
Json = dict[str, Any]


@dataclass(frozen=True)
class Task:
    """One row of the table or one curve: a spec, and what is set otherwise in it."""

    spec: str
    sets: tuple[str, ...] = ()


HOVER = ("compile.strategy=[distill, weights]", "data.dev.limit=48")
SHORT = ("shaping={}", "compile.weights.learning_rate=5e-4", "data.test.limit=96")
"""Further settings of a HoVer program that reads 400 characters of an article, not 600, with the run's reward alone."""
TASKS: Mapping[str, Task] = {
    "banking77": Task("specs/banking77.yaml"),
    "hover": Task("specs/hover.yaml", HOVER),
    "hover-400": Task("specs/hover.yaml", (*HOVER, *SHORT)),
    "helpdesk": Task("specs/helpdesk.yaml"),
    "hover-400-tree": Task("specs/hover.yaml", (*HOVER, *SHORT, "compile.weights.tree=[3, 2, 2]")),
    "helpdesk-tree": Task("specs/helpdesk.yaml", ("compile.weights.tree=[4, 2]",)),
    # The arms that the table of the paper's tasks has besides.
    "banking77-both": Task("specs/banking77.yaml", ("compile.strategy=[prompts, weights]",)),
    "hover-400-both": Task("specs/hover.yaml", SHORT),
    "banking77-retrieval": Task("specs/banking77_retrieval.yaml"),
    "papillon": Task("specs/papillon.yaml", ("compile.strategy=[weights]",)),
    "papillon-both": Task("specs/papillon.yaml"),
}
PAPER = ("banking77-both", "hover-400-both", "banking77-retrieval", "papillon", "papillon-both")
"""Written up by paper.py."""
TABLE = ("banking77", "hover")
CURVES = {"hover-400": "hover-400-tree", "helpdesk": "helpdesk-tree"}


# --- runs ---------------------------------------------------------------------------------------------------------


def make_all(names: Sequence[str], seeds: Sequence[int], parallel: int) -> None:
    """All runs that were not made before. A run and its tree come one after the other and share a folder: so what they
    begin with is made once.
    """
    bases = dict.fromkeys(base(name) for name in names)
    with ThreadPoolExecutor(parallel) as pool:
        together = [(seed, [n for n in names if base(n) == b]) for b in bases for seed in seeds]
        for job in [pool.submit(make, *one) for one in together]:
            job.result()


def make(seed: int, names: Sequence[str]) -> None:
    for name in names:
        result = FOUND / f"{name}-{seed}.json"
        if not result.exists():
            if "-400" in name and "[:400]" not in (REPO / "templates/hover/write_names.j2").read_text():
                raise SystemExit(
                    f"{name}: first write [:400] for [:600] in templates/hover/*.j2, and undo it after the run"
                )
            result.write_text(json.dumps(run(TASKS[name], WORK / f"{base(name)}-{seed}", seed)) + "\n")


def base(name: str) -> str:
    return name.removesuffix("-tree")


def run(task: Task, folder: Path, seed: int) -> Json:
    """One compile: its scores, curves and times."""
    folder.mkdir(parents=True, exist_ok=True)
    sets = [text for key in (*task.sets, f"compile.seed={seed}") for text in ("--set", key)]
    places = ["--out", str(folder / "build"), "--runs", str(folder / "runs")]
    command = [sys.executable, "-m", "mmc", "compile", task.spec, "--json", *places, *sets]
    environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    with (folder / "log").open("a") as log:
        done = subprocess.run(command, cwd=REPO, env=environment, stdout=subprocess.PIPE, stderr=log, text=True)
    if done.returncode:
        raise SystemExit(f"{folder.name} failed; see {folder / 'log'}")
    manifest = json.loads((REPO / json.loads(done.stdout)["build"] / "manifest.json").read_text())
    (place,) = (folder / "runs").iterdir()
    (metrics,) = place.glob("*-weights/training/metrics.jsonl")
    return {
        "seed": seed,
        "machine": manifest["machine"],
        "stages": manifest["stages"],
        "scores": {stage["stage"]: scores_of(place, stage) for stage in manifest["stages"]},
        "steps": [kept(json.loads(line)) for line in metrics.read_text().splitlines()],
        "minutes": sum(json.loads(path.read_text()) for path in place.glob("*/seconds.json")) / 60,
    }


def kept(step: Json) -> Json:
    return {key: round(step[key], 4) for key in CURVES_KEPT}


def scores_of(place: Path, stage: Json) -> list[float]:
    """Scores of the test examples after a stage: the newest that have its mean."""
    files = sorted((place / "scores").glob("*.json"), key=lambda path: -path.stat().st_mtime)
    found = (json.loads(path.read_text()) for path in files)
    return next(f["scores"] for f in found if f["split"] == "test" and abs(fmean(f["scores"]) - stage["score"]) < 1e-9)


# --- model-free baselines -----------------------------------------------------------------------------------------


def hover_baselines() -> dict[str, float]:
    """Recall on the same test claims with as many documents as the program finds, without a model.

    blind expansion: rounds of five new documents for the claim followed by the next document that was not read yet.
    """
    from mmc.program.graph import Program

    loaded = load(REPO / TASKS["hover"].spec)
    tool, examples = Program.build(loaded).tools["search"], load_split(loaded, "test")

    def search(query: str) -> list[Json]:
        return asyncio.run(tool({"query": query}))

    def blind(claim: str) -> list[Json]:
        documents = search(claim)[:5]
        for turn in range(3):
            read = documents[turn]
            hits = search(f"{claim} {read['title']} {read['text']}")
            known = {d["title"] for d in documents}
            documents = documents + [hit for hit in hits if hit["title"] not in known][:5]
        return documents

    found = {"the claim alone": lambda claim: search(claim)[:20], "blind expansion": blind}
    return {name: fmean(recall(method(e.row["claim"]), e) for e in examples) for name, method in found.items()}


def recall(documents: Sequence[Json], example: Example) -> float:
    titles, gold = {d["title"] for d in documents}, example.row["gold_titles"]
    return sum(title in titles for title in gold) / len(gold)


# --- report -------------------------------------------------------------------------------------------------------


def results(name: str, seeds: Sequence[int]) -> list[Json]:
    paths = [FOUND / f"{name}-{seed}.json" for seed in seeds]
    return [json.loads(path.read_text()) for path in paths if path.exists()]


def accelerator(one: Json) -> str:
    """What a run had besides the processor, as words for a report."""
    found = one.get("machine", {}).get("accelerator")
    return f" on {found}" if found else ""


def row(name: str, seed: str, scores: Mapping[str, Sequence[float]], minutes: str) -> str:
    """One line of the table. Scores of several seeds are averaged example by example first."""
    cells = [f"{s.mean:.3f} [{s.low:.3f}, {s.high:.3f}]" for s in map(interval, scores.values())]
    if "distill" not in scores:
        cells.insert(1, "")
    gain = paired(scores["start"], scores["weights"])
    return (
        f"| {name} | {seed} | {' | '.join(cells)} | {gain.mean:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}] | {minutes} |"
    )


def table(seeds: Sequence[int]) -> list[str]:
    lines = [
        "| task | seed | start | after distillation | after mmGRPO | gain | training, minutes |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in TABLE:
        found = results(name, seeds)
        lines += [row(name, str(one["seed"]), one["scores"], f"{one['minutes']:.1f}") for one in found]
        if len(found) > 1:
            means = {
                stage: [fmean(values) for values in zip(*(one["scores"][stage] for one in found), strict=True)]
                for stage in found[0]["scores"]
            }
            lines.append(row(f"**{name}**", f"mean of {len(found)}", means, ""))
    return lines


def smoothed(steps: Sequence[Json], window: int) -> tuple[list[float], list[float]]:
    """(tokens sampled so far, mean reward of the last ``window`` steps)."""
    tokens, rewards, total = [], [], 0
    for i, step in enumerate(steps):
        total += step["sampled"]
        if i + 1 >= window:
            tokens.append(float(total))
            rewards.append(fmean(s["reward"] for s in steps[i + 1 - window : i + 1]))
    return tokens, rewards


def picture(seeds: Sequence[int]) -> list[str]:
    """Draws tree.png; gives lines that say what it shows in numbers."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(CURVES), figsize=(11, 4.2), layout="constrained")
    lines = ["| task | rollouts | seeds | steps | tokens sampled | held-out after |", "|---|---|---|---|---|---|"]
    for axis, (paper, tree) in zip(axes, CURVES.items(), strict=True):
        for name, label, colour in ((paper, "independent runs (the paper)", "C0"), (tree, "a tree of runs", "C1")):
            found = results(name, seeds)
            for number, one in enumerate(found):
                tokens, rewards = smoothed(one["steps"], 5)
                axis.plot(tokens, rewards, colour, alpha=0.75, label=label if number == 0 else None)
            if found:
                steps = fmean(len(one["steps"]) for one in found)
                sampled = fmean(sum(s["sampled"] for s in one["steps"]) for one in found)
                scores = ", ".join(f"{fmean(one['scores']['weights']):.3f}" for one in found)
                lines.append(f"| {paper} | {label} | {len(found)} | {steps:.0f} | {sampled:,.0f} | {scores} |")
        axis.set(title=paper, xlabel="tokens sampled", ylabel="reward, mean of five steps")
        axis.grid(alpha=0.3)
        if axis.lines:
            axis.legend()
    OUT.mkdir(parents=True, exist_ok=True)
    figure.savefig(OUT / "tree.png", dpi=110)
    return lines


def report(seeds: Sequence[int]) -> None:
    """Writes the page from the runs that are there."""
    text = (Path(__file__).parent / "results.md").read_text()
    baselines = [f"| {name} | {score:.3f} |" for name, score in hover_baselines().items()]
    parts = {
        "TABLE": table(seeds),
        "BASELINES": ["| HoVer without a model, as many documents | recall |", "|---|---|", *baselines],
        "TREE": picture(seeds),
    }
    for name, lines in parts.items():
        text = text.replace(f"<!-- {name} -->", "\n".join(lines))
    (OUT / "README.md").write_text(text)
    print(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--tasks", nargs="+", choices=list(TASKS), default=[name for name in TASKS if name not in PAPER]
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--parallel", type=int, default=2)
    parser.add_argument("--only-report", action="store_true", help="write the page from the runs that are there")
    options = parser.parse_args()
    if "MMC_DATA" not in os.environ:
        raise SystemExit(
            "the public data sets are needed: export MMC_DATA=... (the folder that holds banking77/ and hover/)"
        )
    for folder in (WORK, FOUND):
        folder.mkdir(parents=True, exist_ok=True)
    if not options.only_report:
        make_all(options.tasks, options.seeds, options.parallel)
    report(options.seeds)


if __name__ == "__main__":
    main()
