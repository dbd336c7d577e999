"""mmc eval: the score of a program on a split."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from mmc.cli.common import JsonOption, SetOption, SpecArgument, TrustOption, complete_split, print_json, split_name
from mmc.errors import InvalidError


def eval_command(
    spec: SpecArgument,
    split: Annotated[str, typer.Option(help="train, dev or test.", autocompletion=complete_split)] = "dev",
    limit: Annotated[int | None, typer.Option(min=1, help="At most this many examples.")] = None,
    fail_under: Annotated[
        float | None, typer.Option(min=0, max=1, help="Exit with 100 when the score is lower.")
    ] = None,
    baseline: Annotated[
        Path | None, typer.Option(help="A build; exit with 100 when the score is lower than its, beyond chance.")
    ] = None,
    json_: JsonOption = False,
    set_: SetOption = [],  # noqa: B006
    trust: TrustOption = False,
) -> None:
    """Score a program on a split of its data.

    Greedily, with a 95% interval.
    """
    from mmc.build.baseline import against
    from mmc.cli.progress import make_progress
    from mmc.data import load_split
    from mmc.engine import open_engines
    from mmc.program.confidence import Confidence, confidence, silent
    from mmc.program.evaluate import evaluate
    from mmc.program.graph import Program
    from mmc.program.run import RunSettings
    from mmc.program.trajectory import Trajectory, all_calls
    from mmc.spec import load

    chosen = split_name(split)
    program = Program.build(load(spec, set_), trust)
    if program.metric is None:
        raise InvalidError(
            [program.loaded.diagnostic((), "scoring needs a `metric`", "add metric: {type: exact, ...}")]
        )
    examples = load_split(program.loaded, chosen)[:limit]
    if baseline is not None:
        against(baseline, examples, [0.0] * len(examples))  # what cannot be compared is said before anything is run
    done, sure = 0, dict[str, Confidence]()
    with make_progress() as progress:
        progress.begin("loading the model", 1)
        engines = open_engines(program.loaded)
        progress.advance(1)
        progress.begin(f"scoring {split}", len(examples))

        def on_done(trajectory: Trajectory) -> None:
            nonlocal done
            done += 1
            for module, one in confidence(program.spec, all_calls([trajectory])).items():
                sure[module] = sure.get(module, Confidence()) + one
            progress.advance(done)

        seed = program.spec.compile.seed
        result = evaluate(program, engines, examples, RunSettings("eval", 0, seed, 0.0), on_done, traces=False)
    found = result.interval
    gain = against(baseline, examples, result.scores) if baseline is not None else None
    failed = [f"the score is lower than {fail_under:g}"] if fail_under is not None and found.mean < fail_under else []
    if gain is not None and gain.high < 0:
        failed.append(f"the score is lower than that of {baseline}")
    if json_:
        row = {"score": found.mean, "low": found.low, "high": found.high, "n": found.n}
        more: dict[str, Any] = {} if gain is None else {"gain": {"mean": gain.mean, "low": gain.low, "high": gain.high}}
        told = {name: {"calls": one.calls, "silent": one.silent, "mean": one.mean} for name, one in sure.items()}
        more |= {"logprobs": told} if told else {}
        print_json({**row, "split": split, "failures": dict(result.failures), **more})
    else:
        print(f"{split}: {found.mean:.3f}, 95% interval {found.low:.3f} to {found.high:.3f}, {found.n} examples")
        if gain is not None:
            print(f"  {gain.mean:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}] against {baseline}")
        for ending, count in result.failures.items():
            print(f"  {count} runs ended {ending}")
        for module, one in sure.items():
            if one.mean is not None:
                print(f"  {module}: mean log-probability of a token {one.mean:.3f}")
    for line in silent(program.spec, sure):
        print(f"note: {line}", file=sys.stderr)
    if failed:
        print(f"quality gate: {'; '.join(failed)}", file=sys.stderr)
        raise typer.Exit(100)
