"""One mmGRPO step and one evaluation by one and by two workers of a Ray cluster, in turn; then arithmetic up to 64 workers.

    python tests/bench/cluster.py [--pairs 5] [--examples 32] [--gbit 10] [--json FILE]

SmolLM2-135M and specs/helpdesk.yaml, one thread a worker. One worker and two take turns, each with fresh processes that make one
step first; a pair makes the same step from the same seed. `cpu` are the CPU seconds of the worker that had most to do and of the
driver: what a step takes when nothing else uses the cores. What is printed under `measured` was measured here. Under `computed`
it is arithmetic: the seconds of a worker's share are those of one worker with one N-th of the step's examples, and with the
largest of N parts of its calls; bytes are counted and divided by the network's rate.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil

from mmc.cluster import Cluster
from mmc.cluster.engines import ClusterEngines
from mmc.cluster.learner import ClusterLearner
from mmc.data import Example, load_split
from mmc.mmgrpo.group import Rewards, form_groups
from mmc.mmgrpo.record import keep
from mmc.mmgrpo.rollout import Rollouts, take
from mmc.mmgrpo.share import cut
from mmc.mmgrpo.update import module_terms, training_calls
from mmc.program.graph import Program
from mmc.program.run import RunSettings, run_all
from mmc.program.trajectory import Trajectory
from mmc.spec import load
from mmc.spec.cluster import Cluster as Config

REPO = Path(__file__).parents[2]
NAMES = {1: "one", 2: "two"}
DEV = 12
"""Examples of an evaluation."""
WORKERS = (1, 2, 4, 8, 16, 32, 64)
Json = dict[str, Any]


@dataclass
class Side:
    """The program over some workers, and a training there."""

    program: Program
    engines: ClusterEngines
    learner: ClusterLearner
    train: Sequence[Example]
    dev: Sequence[Example]
    rollouts: int

    @classmethod
    def open(cls, cluster: Cluster, workers: int, label: str) -> Side:
        loaded = load(REPO / "specs/helpdesk.yaml")
        program, config = Program.build(loaded), loaded.spec.compile.weights
        sized = replace(cluster, config=cluster.config.model_copy(update={"workers": workers}))
        engines = sized.open_engines(loaded, [], False, print)
        assert isinstance(engines, ClusterEngines)
        learner = engines.make_learner(program, config, label, 0, {})
        learner.set_rate(1e-4, config.learning_rate)
        train, dev = load_split(loaded, "train"), load_split(loaded, "dev")[:DEV]
        return cls(program.with_adapters(learner.names), engines, learner, train, dev, config.rollouts)

    def sample(self, examples: Sequence[Example], step: int) -> list[Trajectory]:
        return run_all(self.program, self.engines, examples, RunSettings("weights", step, 0, 1.0), self.rollouts)

    def calls(self, runs: Sequence[Trajectory]) -> list[Any]:
        config, names = self.program.spec.compile.weights, self.learner.names
        groups = form_groups(runs, list(names), Rewards())
        return training_calls(groups, config, module_terms(self.program.spec, names))

    def update(self, calls: Sequence[Any]) -> Any:
        config = self.program.spec.compile.weights.model_copy(update={"forest_tokens": 2048})
        return self.learner.update(calls, config, 0)

    def step(self, number: int, count: int, place: Path) -> Json:
        """Seconds of one step, as training makes it."""
        examples, _ = take(self.train, count, number * count, 0)
        before, own = self.cpu(), time.process_time()
        sampling, runs = timed(lambda: self.sample(examples, number))
        middle = self.cpu()
        between, calls = timed(lambda: self._kept(runs, place))
        then = self.cpu()
        updating, report = timed(lambda: self.update(calls))
        after = self.cpu()
        saving, _ = timed(lambda: (self.learner.save(place / "a"), self.learner.save_optimizer(place / "o.pt")))
        parts = {f"{name} {n}": s for n, one in self.learner.last.items() for name, s in one.seconds.items()}
        greedy = RunSettings("eval", number, 0, 0.0)
        own, began = time.process_time() - own, self.cpu()
        scoring, _ = timed(lambda: run_all(self.program, self.engines, self.dev, greedy))
        whole = sampling + between + updating + saving
        busy = {
            "cpu sampling": busiest(before, middle),
            "cpu update": busiest(then, after),
            "cpu evaluation": busiest(began, self.cpu()),
        }
        busy["cpu step"] = busy["cpu sampling"] + busy["cpu update"] + own
        return {
            "step": whole, "sampling": sampling, "update": updating, "driver": own, "evaluation": scoring,
            "tokens": report.tokens, "packed": report.packed, "calls": len(calls), **busy, **parts,
        }  # fmt: skip

    def cpu(self) -> list[float]:
        """CPU seconds of each worker's process so far: what it would have taken on a core of its own."""
        abouts = [member.about for member in self.engines.pool.members]
        times = [psutil.Process(about.pid).cpu_times() for about in abouts if about is not None]
        return [one.user + one.system for one in times]

    def busy(self, work: Callable[[], Any]) -> float:
        """CPU seconds that ``work`` takes the busiest worker."""
        before = self.cpu()
        work()
        return busiest(before, self.cpu())

    def _kept(self, runs: list[Trajectory], place: Path) -> list[Any]:
        config, names = self.program.spec.compile.weights, list(self.learner.names)
        groups = form_groups(runs, names, Rewards())
        keep(place / "rollouts.jsonl", 1, Rollouts(tuple(runs), tuple(groups), 0), config, (names, Rewards()))
        return self.calls(runs)


def busiest(before: Sequence[float], after: Sequence[float]) -> float:
    """CPU seconds of the worker that had most to do."""
    return max(b - a for a, b in zip(before, after, strict=True))


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    found = work()
    return time.perf_counter() - start, found


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Median and range."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def pairs(cluster: Cluster, count: int, examples: int, place: Path) -> list[Json]:
    rows = []
    for number in range(1, count + 1):
        row = {}
        for workers in (1, 2) if number % 2 else (2, 1):
            with opened(cluster, workers) as side:
                side.step(0, examples, place)  # the first one to touch its memory
                row[NAMES[workers]] = side.step(number, examples, place)
        print(json.dumps({name: {k: round(v, 3) for k, v in side.items()} for name, side in row.items()}), flush=True)
        rows.append(row)
    return rows


@contextmanager
def opened(cluster: Cluster, workers: int) -> Iterator[Side]:
    side = Side.open(cluster, workers, f"bench{workers}")
    try:
        yield side
    finally:
        side.engines["policy"].close()


def share_seconds(one: Side, examples: int, repeats: int) -> dict[int, tuple[float, float]]:
    """Workers -> CPU seconds of one worker that samples its share of a step, and that makes an update by the largest part."""
    chosen, _ = take(one.train, examples, 0, 0)
    calls = one.calls(one.sample(chosen, 0))
    found = {}
    for workers in WORKERS:
        share = chosen[: max(1, examples // workers)]
        sampling = [one.busy(lambda share=share: one.sample(share, 0)) for _ in range(repeats)]  # type: ignore[misc]
        parts = [part for part in cut(calls, workers) if part]
        sizes = [one.update(part).packed for part in parts[:: max(1, len(parts) // 8)]]
        largest = parts[:: max(1, len(parts) // 8)][sizes.index(max(sizes))]
        gradients = [one.busy(lambda largest=largest: one.update(largest)) for _ in range(repeats)]  # type: ignore[misc]
        found[workers] = statistics.median(sampling), statistics.median(gradients)
        print(f"1/{workers} of a step: sampling {spread(sampling)} s, update {spread(gradients)} s", flush=True)
    return found


def parts_of(one: Side, examples: int, repeats: int) -> Json:
    """Seconds of every share, and bytes that go over the network in one step."""
    chosen, _ = take(one.train, examples, 0, 0)
    shares, runs, state = share_seconds(one, examples, repeats), one.sample(chosen, 0), one.learner._state
    adapters = sum(len(data) for files in state.adapters.values() for data in files.values())
    return {
        "shares": shares,
        "state_bytes": state.size,
        "gradient_bytes": adapters,  # both are float32
        "run_bytes": sum(len(pickle.dumps(run)) for run in runs),
    }


def computed(measured: Json, gbit: float, grown: bool) -> list[Json]:
    """A step over N workers, each on a machine of its own: of the same size, or (``grown``) of N times the examples."""
    rate, rows = gbit * 1e9 / 8, []
    for workers, shares in measured["shares"].items():
        sampling, update = measured["shares"][1] if grown else shares
        size = workers if grown else 1
        reduce = 2 * (workers - 1) / workers * measured["gradient_bytes"] / rate
        state = measured["state_bytes"] / rate
        driver = size * (measured["driver_seconds"] + measured["run_bytes"] / rate)
        total = sampling + update + reduce + state + driver
        row = {"workers": workers, "sampling": sampling, "update": update, "all_reduce": reduce, "state": state}
        rows.append({**row, "driver": driver, "step": total, "examples a second": size / total})
    return [{**row, "speedup": row["examples a second"] / rows[0]["examples a second"]} for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--examples", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--gbit", type=float, default=10.0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with Cluster("local", Config(workers=2)) as cluster, tempfile.TemporaryDirectory() as folder:
        rows = pairs(cluster, options.pairs, options.examples, Path(folder))
        print(f"measured, {os.cpu_count()} cores, one thread a worker; one worker over two, median and range of pairs:")
        names = ("step", "sampling", "update", "evaluation")
        for name in (*names, *(f"cpu {name}" for name in names)):
            ratios = [row["one"][name] / row["two"][name] for row in rows]
            seconds = {side: spread([row[side][name] for row in rows]) for side in NAMES.values()}
            print(f"  {name}: {spread(ratios)}; {seconds['one']} s and {seconds['two']} s", flush=True)
        with opened(cluster, 1) as one:
            measured = parts_of(one, options.examples, options.repeats)
    measured["driver_seconds"] = statistics.median(row["one"]["driver"] for row in rows)
    measured["sums_seconds"] = statistics.median(min(row["two"]["sums 0"], row["two"]["sums 1"]) for row in rows)
    measured["state_seconds"] = statistics.median(row["one"]["state 0"] for row in rows)
    print("measured: " + json.dumps({name: value for name, value in measured.items() if name != "shares"}))
    tables = {grown: computed(measured, options.gbit, grown) for grown in (False, True)}
    for grown, table in tables.items():
        what = "as many times the examples as workers" if grown else "the same step"
        print(f"computed, {options.gbit:g} Gbit/s between machines, {what}:")
        for row in table:
            print("  " + ", ".join(f"{name} {value:.3g}" for name, value in row.items() if name != "examples a second"))
    if options.json:
        found = {"pairs": rows, "measured": measured, "same": tables[False], "grown": tables[True]}
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
