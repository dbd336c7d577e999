"""The metric, its judges, and shaping: outputs, modules and verdicts they name. Columns are checked with the data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mmc.program.check.findings import Findings
from mmc.program.steps import called, metric_fields
from mmc.spec import model
from mmc.spec.marks import KeyPath
from mmc.spec.metrics import judges_of
from mmc.spec.types import did_you_mean


def check_metric(findings: Findings) -> None:
    """What the metric and shaping name, but for columns of the data."""
    _predicted(findings)
    _judges(findings)
    _shaping(findings)


def _predicted(findings: Findings) -> None:
    """Outputs that the metric scores: each way a run can end must give them."""
    program = findings.spec.program
    ends = [(path, list(step.return_)) for path, step in _returns(("program", "steps"), program.steps)]
    ends += [(("program", "outputs"), list(program.outputs))] if program.outputs else []
    outputs = {name for _, names in ends for name in names}
    if not outputs:
        return  # the program's own problem
    for name, path in metric_fields(findings.spec.metric, "predicted").items():
        if name not in outputs:
            message = f"the program has no output {name!r}.{did_you_mean(name, outputs)}"
            findings.error(path, message, f"its outputs are: {', '.join(sorted(outputs))}")
            continue
        for end, names in ends:
            if name not in names:
                message = (
                    f"a run that ends here has no output {name!r}, which the metric scores.{did_you_mean(name, names)}"
                )
                findings.error(end, message, at_key=True)


def _returns(path: KeyPath, steps: Sequence[model.Step]) -> Iterator[tuple[KeyPath, model.ReturnStep]]:
    for i, step in enumerate(steps):
        place: KeyPath = (*path, i)
        match step:
            case model.ReturnStep():
                yield (*place, "return"), step
            case model.IfStep():
                yield from _returns((*place, "steps"), step.steps)
                yield from _returns((*place, "else"), step.else_)
            case model.RepeatStep() | model.ForStep():
                yield from _returns((*place, "steps"), step.steps)
            case model.ParallelStep():
                for j, branch in enumerate(step.parallel):
                    yield from _returns((*place, "parallel", j), branch)


def _judges(findings: Findings) -> None:
    """Modules, inputs and verdicts that the metric's judges name."""
    for path, judge in judges_of(findings.spec.metric).items():
        if not findings.known(judge.module, findings.spec.modules, (*path, "module"), "module"):
            continue
        module = findings.spec.modules[judge.module]
        if judge.module in called(findings.spec.program.steps):
            message = f"the program calls {judge.module!r} itself; a judge is a module of its own"
            findings.error((*path, "module"), message)
        for name in judge.with_:
            findings.known(name, module.inputs, (*path, "with", name), f"input of {judge.module}", at_key=True)
        if judge.output is not None:
            findings.known(judge.output, module.outputs, (*path, "output"), f"output of {judge.module}")
        elif len(module.outputs) > 1:
            listed = ", ".join(module.outputs)
            findings.error(
                path, f"{judge.module!r} has several outputs: {listed}", "say which is the verdict: `output`"
            )


def _shaping(findings: Findings) -> None:
    for name, parts in findings.spec.shaping.items():
        path: KeyPath = ("shaping", name)
        if not findings.known(name, findings.spec.modules, path, "module", at_key=True):
            continue
        fields = {**findings.spec.modules[name].outputs, **findings.spec.modules[name].inputs}
        for i, part in enumerate(parts):
            place = (*path, i, "metric")
            for at in judges_of(part.metric, place):
                findings.error(at, "a judge scores whole runs; shaping takes other metrics")
            for field, where in metric_fields(part.metric, "predicted", place).items():
                findings.known(field, fields, where, f"output or input of {name}")
