"""mmc eval: the score of a program on a split."""

from __future__ import annotations

from typing import Annotated

import typer

from mmc.cli.common import JsonOption, SetOption, SpecArgument, TrustOption, print_json, split_name
from mmc.errors import InvalidError


def eval_command(
    spec: SpecArgument,
    split: Annotated[str, typer.Option(help="train, dev or test.")] = "dev",
    limit: Annotated[int | None, typer.Option(min=1, help="At most this many examples.")] = None,
    json_: JsonOption = False,
    set_: SetOption = [],  # noqa: B006
    trust: TrustOption = False,
) -> None:
    """Score a program greedily on a split of its data, with a 95% interval."""
    from mmc.cli.progress import make_progress
    from mmc.data import load_split
    from mmc.engine import open_engines
    from mmc.program.evaluate import evaluate
    from mmc.program.graph import Program
    from mmc.program.run import RunSettings
    from mmc.spec import load

    chosen = split_name(split)
    program = Program.build(load(spec, set_), trust)
    if program.metric is None:
        raise InvalidError(
            [program.loaded.diagnostic((), "scoring needs a `metric`", "add metric: {type: exact, ...}")]
        )
    examples = load_split(program.loaded, chosen)[:limit]
    done = 0
    with make_progress() as progress:
        progress.begin("loading the model", 1)
        engines = open_engines(program.loaded)
        progress.advance(1)
        progress.begin(f"scoring {split}", len(examples))

        def on_done(trajectory: object) -> None:
            nonlocal done
            done += 1
            progress.advance(done)

        seed = program.spec.compile.seed
        result = evaluate(program, engines, examples, RunSettings("eval", 0, seed, 0.0), on_done)
    found = result.interval
    if json_:
        row = {"score": found.mean, "low": found.low, "high": found.high, "n": found.n}
        print_json({**row, "split": split, "failures": dict(result.failures)})
        return
    print(f"{split}: {found.mean:.3f}, 95% interval {found.low:.3f} to {found.high:.3f}, {found.n} examples")
    for ending, count in result.failures.items():
        print(f"  {count} runs ended {ending}")
