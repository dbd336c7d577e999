"""Runs and training over two workers, and what happens when one of them dies or hangs."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from mmc.cluster import Cluster
from mmc.cluster.orders import Pushed
from mmc.cluster.worker import Worker
from mmc.engine import open_engines
from mmc.engine.base import Message, Request, Sampling
from mmc.errors import EnvironmentProblem
from mmc.mmgrpo.policy import Policy, make_learner
from mmc.mmgrpo.report import StepReport
from mmc.mmgrpo.train import TrainingJob, train
from mmc.program.run import run_all
from mmc.program.trajectory import Trajectory
from mmc.search.base import kept_beginnings
from mmc.spec.cluster import Cluster as Config

from .conftest import CONFIG, EXAMPLES, SAMPLING, Spread

ROLLOUTS = 4


def facts(run: Trajectory) -> tuple[Any, ...]:
    """What a run is, but for the last bits of log-probabilities."""
    calls = [(call.module, call.completion.prompt_ids_T, call.completion.ids_T, call.outputs) for call in run.calls]
    return run.example_id, run.rollout, run.ending, run.reward, calls


def close(found: Path, expected: Path) -> None:
    """The same adapters within float error, which Adam makes larger where a gradient is almost nothing."""
    ours, theirs = (load_file(next(folder.rglob("adapter_model.safetensors"))) for folder in (found, expected))
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_allclose(ours[name], theirs[name], atol=3e-4, rtol=1e-3, err_msg=name)


@contextmanager
def patience(spread: Spread, seconds: float) -> Iterator[None]:
    """Another time-out of the workers' pool."""
    pool = spread.engines.pool
    before, pool.size = pool.size, replace(pool.size, timeout=seconds)
    pool._meeting = None
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("mmc.cluster.pool.ANSWER_S", 1.0)
        try:
            yield
        finally:
            pool.size, pool._meeting = before, None


@contextmanager
def stopped(process: int) -> Iterator[None]:
    """The process stands still."""
    os.kill(process, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(process, signal.SIGCONT)


def test_two_workers_draw_what_one_process_draws_and_tell_of_every_run_once(spread: Spread) -> None:
    heard: list[tuple[str, int]] = []

    def on_done(run: Trajectory) -> None:
        heard.append((run.example_id, run.rollout))

    runs = run_all(spread.program, spread.engines, EXAMPLES, SAMPLING, ROLLOUTS, on_done)
    here = spread.here(ROLLOUTS)
    assert [facts(run) for run in runs] == [facts(run) for run in here]
    for mine, theirs in zip(runs, here, strict=True):
        for a, b in zip(mine.calls, theirs.calls, strict=True):
            np.testing.assert_allclose(a.completion.logprobs_T, b.completion.logprobs_T, atol=1e-4)
    assert sorted(heard) == sorted((e.id, r) for e in EXAMPLES for r in range(ROLLOUTS))
    tokens = sum(c.completion.prompt_tokens + c.completion.completion_tokens for run in runs for c in run.calls)
    assert spread.engines["policy"].spent.tokens == tokens


def test_workers_run_a_program_whose_knobs_a_search_has_turned(spread: Spread, monkeypatch: pytest.MonkeyPatch) -> None:
    turned = spread.program.with_settings({"modules.think.max_tokens": 3})
    here = run_all(turned, open_engines(turned.loaded), EXAMPLES, SAMPLING, ROLLOUTS)
    monkeypatch.setattr("mmc.cluster.engines.run_all", None)  # nothing is run by the driver
    assert [facts(run) for run in run_all(turned, spread.engines, EXAMPLES, SAMPLING, ROLLOUTS)] == [*map(facts, here)]
    assert max(len(run.calls[0].completion.ids_T) for run in here) == 3
    plain = run_all(spread.program, spread.engines, EXAMPLES, SAMPLING, ROLLOUTS)
    assert max(len(run.calls[0].completion.ids_T) for run in plain) > 3


def test_an_example_that_stands_in_a_batch_twice_is_there_twice(spread: Spread) -> None:
    batch = [EXAMPLES[0], EXAMPLES[1], EXAMPLES[0]]
    runs = run_all(spread.program, spread.engines, batch, SAMPLING, 2)
    assert [(run.example_id, run.rollout) for run in runs] == [(e.id, r) for e in batch for r in range(2)]


def test_training_over_two_workers_gives_the_adapters_of_one_process_and_goes_on_there(
    spread: Spread, tmp_path: Path
) -> None:
    def job(folder: str, engines: Any, stop: int = 9) -> TrainingJob:
        def on_step(report: StepReport) -> None:
            if report.step == stop:
                raise KeyboardInterrupt

        here = tmp_path / folder / "training"
        return TrainingJob(spread.program, engines, EXAMPLES, EXAMPLES, CONFIG, 0, here, on_step=on_step)

    alone = train(job("alone", open_engines(spread.program.loaded)))
    together = train(job("together", spread.engines))
    kept = [(tmp_path / name / "training/rollouts.jsonl").read_bytes() for name in ("alone", "together")]
    assert kept[0] == kept[1] and alone.steps == together.steps == 3
    close(tmp_path / "together/training/final", tmp_path / "alone/training/final")
    curves = [(tmp_path / name / "training/metrics.jsonl").read_text() for name in ("alone", "together")]
    for mine, theirs in zip(*(map(json.loads, curve.splitlines()) for curve in curves), strict=True):
        for name in ("reward", "tokens", "loss", "entropy", "grad_norm"):
            assert mine[name] == pytest.approx(theirs[name], rel=1e-4, abs=1e-6), name
    digests = {one.digest for one in spread.engines._learner.last.values()}  # type: ignore[union-attr]
    assert len(digests) == 1, "all workers made the same step, bit for bit"
    with pytest.raises(KeyboardInterrupt):
        train(job("resumed", spread.engines, stop=2))
    train(job("resumed", open_engines(spread.program.loaded)))
    close(tmp_path / "resumed/training/final", tmp_path / "alone/training/final")
    assert (tmp_path / "resumed/training/rollouts.jsonl").read_bytes() == kept[0]


def test_a_worker_killed_while_it_runs_programs_is_replaced_and_no_run_is_lost_or_told_twice(spread: Spread) -> None:
    victim, heard = spread.process(1), list[tuple[str, int]]()
    theirs = {example.id for example in EXAMPLES[3:]}

    def on_done(run: Trajectory) -> None:
        if run.example_id in theirs and not theirs & {name for name, _ in heard}:
            os.kill(victim, signal.SIGKILL)
        heard.append((run.example_id, run.rollout))

    spent = spread.engines["policy"].spent.tokens
    runs = run_all(spread.program, spread.engines, EXAMPLES, SAMPLING, ROLLOUTS, on_done)
    assert spread.process(1) != victim, "it is another process"
    assert [facts(run) for run in runs] == [facts(run) for run in spread.here(ROLLOUTS)]
    assert sorted(heard) == sorted((e.id, r) for e in EXAMPLES for r in range(ROLLOUTS))
    tokens = sum(c.completion.prompt_tokens + c.completion.completion_tokens for run in runs for c in run.calls)
    assert spread.engines["policy"].spent.tokens - spent == tokens
    assert any(re.search(rf"worker 1 \(process {victim} on .*\) is gone and will be replaced", s) for s in spread.said)


def test_a_worker_killed_in_an_update_is_replaced_and_the_step_is_made_once(spread: Spread, tmp_path: Path) -> None:
    arguments = (CONFIG, "killed", 0, {})
    alone = make_learner(spread.program, open_engines(spread.program.loaded), *arguments)
    together = make_learner(spread.program, spread.engines, *arguments)
    runs = spread.here(ROLLOUTS)
    for learner in (alone, together):
        learner.set_rate(0.01, CONFIG.learning_rate)
        learner.update(spread.calls(runs, learner), CONFIG, 0)
    victim, members = spread.process(1), spread.engines.pool.members

    def kill() -> None:
        import ray

        while "all-reduce" not in ray.get(members[0].actor.where.remote())[0]:
            time.sleep(0.02)
        os.kill(victim, signal.SIGKILL)

    os.kill(victim, signal.SIGSTOP)  # so that the first worker is in the sum when this one dies
    killer = threading.Thread(target=kill)
    killer.start()
    found = together.update(spread.calls(runs, together), CONFIG, 1)
    killer.join()
    expected = alone.update(spread.calls(runs, alone), CONFIG, 1)
    assert spread.process(1) != victim
    assert found.tokens == expected.tokens and found.grad_norm == pytest.approx(expected.grad_norm, rel=1e-3)
    for name, learner in (("alone", alone), ("together", together)):
        learner.save(tmp_path / name)
        learner.save_optimizer(tmp_path / f"{name}.pt")
    close(tmp_path / "together", tmp_path / "alone")
    import torch

    steps = [torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("alone", "together")]
    assert {float(one["step"]) for found in steps for one in found["state"].values()} == {2.0}


def test_a_push_that_does_not_arrive_is_named(spread: Spread) -> None:
    import ray

    late = ray.remote(lambda: time.sleep(60)).options(num_cpus=0).remote()
    worker = Worker(7, 1, 0, limit=0.5)
    with pytest.raises(
        EnvironmentProblem, match=r"worker 7 on [\d.]+ could not fetch the weights \(1.5 MB\).*within 0.5 s"
    ):
        worker._fetched(Pushed("the weights", "1", (late,), 1_500_000))
    assert worker.where()[0] == "fetching the weights (1.5 MB)"
    ray.cancel(late, force=True)


def test_the_driver_asks_models_itself_and_opens_them_only_then(spread: Spread) -> None:
    engine: Any = spread.engines["policy"]
    messages = (Message("user", "hello"),)
    own = open_engines(spread.program.loaded)["policy"]
    assert engine.count_tokens(messages) == own.count_tokens(messages)
    request = Request(("ask",), messages, Sampling(1.0, 8), seed=3)

    async def ask(one: Any) -> Any:
        with one.client():
            return await one.complete(request)

    assert engine._own is None, "nothing before has asked the driver's"
    assert asyncio.run(ask(engine)).ids_T == asyncio.run(ask(own)).ids_T


def test_what_prompts_share_stays_computed_at_the_workers_while_a_search_goes_on(spread: Spread) -> None:
    engines = spread.engines
    with kept_beginnings(engines):
        (order, *_) = engines._orders(spread.program, EXAMPLES, SAMPLING, 1).values()
        again = run_all(spread.program, engines, EXAMPLES, SAMPLING, 2)
    assert order.keep and not engines._orders(spread.program, EXAMPLES, SAMPLING, 1)[0].keep
    assert [facts(run) for run in again] == [facts(run) for run in spread.here(2)]


def test_more_workers_than_there_is_room_for_are_refused(spread: Spread, ray_here: Cluster) -> None:
    many = replace(ray_here, config=Config(workers=500))
    with pytest.raises(EnvironmentProblem, match=r"room for \d+ workers of 1 CPU and 0 GPU each.*; 500 are asked for"):
        many.open_engines(spread.program.loaded, [], False, spread.said.append)


def test_a_policy_here_and_one_over_workers_are_both_learners(spread: Spread) -> None:
    here = make_learner(spread.program, open_engines(spread.program.loaded), CONFIG, "kind", 0, {})
    there = make_learner(spread.program, spread.engines, CONFIG, "kind", 0, {})
    assert isinstance(here, Policy) and not isinstance(there, Policy)
    assert here.names == there.names
    assert spread.engines.pool.neighbours(0) == 2
    half = here.training_tokens(2)
    assert half == max(512, here.training_tokens() // 2)
    assert there.training_tokens() in (half // 2, half, 2 * half), (
        "two workers share this machine's memory, free as it is now"
    )


# The last ones: they leave a worker that has not done what it was told.


def test_who_hangs_in_a_sum_is_named_and_so_is_who_waits_for_it(spread: Spread) -> None:
    learner = make_learner(spread.program, spread.engines, CONFIG, "hang", 0, {})
    calls = spread.calls(spread.here(ROLLOUTS), learner)
    learner.set_rate(0.01, CONFIG.learning_rate)
    learner.update(calls, CONFIG, 0)
    with patience(spread, 4), pytest.raises(EnvironmentProblem, match="an update over") as error:
        learner.update(calls, CONFIG, 1)
        with stopped(spread.process(1)):
            learner.update(calls, CONFIG, 2)
    text = str(error.value)
    assert re.search(r"worker 1 \(process \d+ on [\d.]+\) did not say within 1 s", text)
    assert re.search(r"worker 0 .* the all-reduce of .* MB of gradients|the all-reduce of gradients failed after", text)


def test_who_hangs_in_a_run_is_named_with_the_place_and_the_time(spread: Spread) -> None:
    with (
        patience(spread, 3),
        stopped(spread.process(1)),
        pytest.raises(
            EnvironmentProblem, match=r"no result within 3 s \(cluster.timeout\) from worker 1 \(process"
        ) as error,
    ):
        run_all(spread.program, spread.engines, EXAMPLES, SAMPLING, ROLLOUTS)
    text = str(error.value)
    assert text.startswith("24 runs (weights, step 0): ")
    assert re.search(r"worker 1 \(process \d+ on [\d.]+\) did not say within 1 s", text)
    assert re.search(r"worker 0 \(process \d+ on [\d.]+\) has been busy with", text)
