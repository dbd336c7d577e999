"""mmc render: the exact messages a module sends, and their tokens."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmc.cli.common import (
    InputOption,
    JsonOption,
    SetOption,
    SpecArgument,
    TrustOption,
    complete_split,
    print_json,
    read_inputs,
    split_name,
)
from mmc.errors import EnvironmentProblem, UsageError, shown

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mmc.data import Example
    from mmc.engine.tokens import Counter
    from mmc.program.graph import Program
    from mmc.program.preview import Preview


def render_command(
    spec: SpecArgument,
    module: Annotated[str | None, typer.Option(help="Only this module.")] = None,
    example: Annotated[str | None, typer.Option(help="Id of the example; the first when left out.")] = None,
    split: Annotated[str, typer.Option(help="Split the example is taken from.", autocompletion=complete_split)] = "dev",
    tokens: Annotated[bool, typer.Option(help="Count tokens with each model's own tokenizer.")] = True,
    input_: InputOption = [],  # noqa: B006
    json_: JsonOption = False,
    set_: SetOption = [],  # noqa: B006
    trust: TrustOption = False,
) -> None:
    """Print the messages each module would send, and their tokens.

    Inputs come from an example of the data and from --input.
    """
    from mmc.program.graph import Program
    from mmc.program.preview import preview
    from mmc.spec import load

    program = Program.build(load(spec, set_), trust)
    modules = program.spec.modules
    if module is not None and module not in modules:
        raise UsageError(f"there is no module {module!r}; there are {', '.join(modules)}")
    texts = frozenset(n for m in modules.values() for n, kind in m.inputs.items() if kind == "str")
    examples = _examples(program, split)
    given = read_inputs(input_, texts)
    known = {**_row(examples, split, example), **given}
    lacking = {name: [key for key in m.inputs if key not in known] for name, m in modules.items()}
    if module is not None and lacking[module]:
        raise UsageError(_needs(module, lacking[module]))
    rows = [{key: value for key, value in e.row.items() if key not in given} for e in examples]
    counters: dict[str, Counter | str] = {}
    found: dict[str, Preview | None] = {}
    for name in [module] if module else modules:
        counter = _counter(program, modules[name].model, counters) if tokens and not lacking[name] else None
        found[name] = None if lacking[name] else preview(program, name, known, rows, counter)
    if json_:
        print_json({name: None if one is None else asdict(one) for name, one in found.items()})
        return
    for name, one in found.items():
        if one is None:
            print(f"== {_needs(name, lacking[name])}\n")
        else:
            why = counters.get(modules[name].model)
            _print(
                f"{name} ({shown(str(program.templates[name].path))})",
                one,
                split,
                why if isinstance(why, str) else None,
            )


def _examples(program: Program, split: str) -> Sequence[Example]:
    from mmc.data import load_split

    return load_split(program.loaded, split_name(split)) if program.spec.data is not None else ()


def _row(examples: Sequence[Example], split: str, example: str | None) -> Mapping[str, Any]:
    if example is None:
        return examples[0].row if examples else {}
    found = next((e for e in examples if e.id == example), None)
    if found is None:
        first = f"; its first is {examples[0].id}" if examples else ""
        raise UsageError(f"--example {example}: the {split} split has no such id{first}")
    return found.row


def _counter(program: Program, model: str, counters: dict[str, Counter | str]) -> Counter | None:
    """The counter of a model, opened once; None when it cannot be, and why is kept."""
    from mmc.engine.tokens import open_counter

    if model not in counters:
        try:
            counters[model] = open_counter(program.loaded, model)
        except EnvironmentProblem as error:
            counters[model] = str(error)
    found = counters[model]
    return None if isinstance(found, str) else found


def _needs(name: str, missing: Sequence[str]) -> str:
    return f"{name}: needs {', '.join(missing)}, made by earlier steps; give --input {missing[0]}=..."


def _print(head: str, found: Preview, split: str, unknown: str | None) -> None:
    print(f"== {head}")
    for message in found.messages:
        print(f"[{message.role}]\n{message.content}\n")
    if unknown is not None:
        print(f"tokens: unknown ({unknown})\n")
    if found.tokens is None:
        return
    parts = [f"{m.role} {'?' if n is None else n}" for m, n in zip(found.messages, found.counts, strict=True)]
    print(f"tokens: {found.tokens} ({', '.join(parts)}, the rest is the chat template's)")
    if found.shared is not None:
        share = found.shared.tokens / found.tokens
        print(f"shared: the first {found.shared.tokens} ({share:.0%}), by {found.shared.examples} examples of {split}")
    print()
