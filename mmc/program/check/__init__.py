"""Every static problem of a spec, its templates and its data files, found before anything is spent.

One file for each part of a spec, and in it one function of a :class:`mmc.program.check.findings.Findings`, which collects.
"""

from __future__ import annotations

from mmc.errors import Diagnostic, EnvironmentProblem, InvalidError
from mmc.program.check.data import check_data
from mmc.program.check.findings import Findings
from mmc.program.check.metric import check_metric
from mmc.program.check.modules import check_modules
from mmc.program.check.stages import check_stages, untunable
from mmc.program.check.steps import check_program
from mmc.spec.load import LoadedSpec

__all__ = ["check", "refuse", "untunable"]


def check(loaded: LoadedSpec) -> tuple[Diagnostic, ...]:
    """All problems of ``loaded``, sorted by place, among them variables of the environment that are not set."""
    findings = Findings(loaded)
    for part in (check_modules, check_stages, check_program, check_metric, check_data):
        part(findings)
    return tuple(sorted(set(findings.found)))


def refuse(problems: tuple[Diagnostic, ...]) -> None:
    """Raises InvalidError when there are errors, EnvironmentProblem when only this machine is to blame for them."""
    errors = [problem for problem in problems if problem.severity == "error"]
    if errors and all(problem.cause == "environment" for problem in errors):
        raise EnvironmentProblem("\n".join(problem.render() for problem in errors))
    if errors:
        raise InvalidError(errors)
