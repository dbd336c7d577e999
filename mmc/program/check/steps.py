"""The steps of a program: what they call, what they use, and whether it is made before."""

from __future__ import annotations

import graphlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from mmc.program.check.findings import Findings
from mmc.program.expression import attributes_in
from mmc.program.steps import called, returns, walk
from mmc.spec import model
from mmc.spec.marks import KeyPath
from mmc.spec.metrics import judges_of
from mmc.spec.tools import CODE, PLACE
from mmc.spec.types import closest, coerce, did_you_mean, parse_type

QUERY = "query"
"""The one argument of a search."""


def check_program(findings: Findings) -> None:
    """Types, steps and outputs of the program, and modules and tools that no step uses."""
    _Steps(findings).check()


class _Steps:
    def __init__(self, findings: Findings) -> None:
        self.findings, self.spec = findings, findings.spec
        self.needs: dict[str, set[str]] = {}
        """Result of a step -> the variables it was made from, for finding cycles."""
        self.unset: list[tuple[KeyPath, str, str]] = []
        """Where a name is used that nothing has made before, the name, and for whom when no expression says it."""
        self.results = _results(self.spec)
        self.meant: set[str] = set()
        """Modules and tools that steps name wrongly: nothing more is said of what follows from that."""

    def check(self) -> None:
        program, findings = self.spec.program, self.findings
        for name, kind in program.inputs.items():
            findings.type(("program", "inputs", name), kind)
        known = self._steps(("program", "steps"), program.steps, set(program.inputs))
        for name, value in program.outputs.items():
            self._uses(("program", "outputs", name), value, known)
        if not program.outputs and not returns(program.steps):
            findings.error(
                ("program",), "the program has no outputs", "add outputs: {...} or a return step", at_key=True
            )
        self._report_unset()
        self._report_unused()

    def _report_unused(self) -> None:
        used = called(self.spec.program.steps) | self.meant
        used |= {judge.module for judge in judges_of(self.spec.metric).values()}
        for name in self.spec.modules.keys() - used:
            self.findings.warning(("modules", name), f"no step calls the module {name!r}", at_key=True)
        tools = {step.tool for step in walk(self.spec.program.steps) if isinstance(step, model.ToolStep)} | self.meant
        for name in self.spec.tools.keys() - tools:
            self.findings.warning(("tools", name), f"no step uses the tool {name!r}", at_key=True)

    # --- steps ---

    def _steps(self, path: KeyPath, steps: Sequence[model.Step], known: set[str]) -> set[str]:
        """Checks steps in order; gives the variables known after them."""
        known = set(known)
        for i, step in enumerate(steps):
            if i and isinstance(steps[i - 1], model.ReturnStep):
                self.findings.warning((*path, i), "this step is never reached: a return stands before it")
            known |= self._step((*path, i), step, known)
        return known

    def _step(self, path: KeyPath, step: model.Step, known: set[str]) -> set[str]:
        match step:
            case model.CallStep():
                return self._call(path, step, known)
            case model.ToolStep():
                return self._tool(path, step, known)
            case model.SetStep():
                for name, value in step.set.items():
                    self._uses((*path, "set", name), value, known, name)
                return set(step.set)
            case model.IfStep():
                self._condition((*path, "if"), step.if_, known)
                return self._steps((*path, "steps"), step.steps, known) | self._steps(
                    (*path, "else"), step.else_, known
                )
            case model.RepeatStep():
                after = self._steps((*path, "steps"), step.steps, known)
                if step.until is not None:
                    self._condition((*path, "until"), step.until, after)
                return after
            case model.ForStep():
                name, items = next(iter(step.for_.items()))
                self._uses((*path, "for", name), items, known)
                if "{{" not in items:
                    self.findings.error((*path, "for", name), f"{items!r} is a text, not a list", _braces(items))
                return self._steps((*path, "steps"), step.steps, known | {name})
            case model.ParallelStep():
                branches = [self._steps((*path, "parallel", i), b, known) for i, b in enumerate(step.parallel)]
                return set().union(*branches)
            case model.ReturnStep():
                for name, value in step.return_.items():
                    self._uses((*path, "return", name), value, known)
        return set()

    def _tool(self, path: KeyPath, step: model.ToolStep, known: set[str]) -> set[str]:
        result = step.as_ or step.tool
        if not self.findings.known(step.tool, self.spec.tools, (*path, "tool"), "tool"):
            result = self._meant(result, step.tool, self.spec.tools, step.as_)
        self.needs.setdefault(result, set())
        for name, value in step.with_.items():
            self._uses((*path, "with", name), value, known, result)
        tool = self.spec.tools.get(step.tool)
        for name in PLACE.findall(tool.url) if isinstance(tool, model.HttpTool) else ():
            if name not in step.with_:
                meant = next((said for said in step.with_ if closest(said, [name])), None)
                hint = f"{meant!r} stands in its place" if meant else f'add with: {{{name}: "{{{{ ... }}}}"}}'
                self.findings.error((*path, "tool"), f"the URL of {step.tool!r} needs the argument {name!r}", hint)
        if isinstance(tool, model.Bm25Tool):
            for name in step.with_.keys() - {QUERY}:
                message = f"a search takes no argument {name!r}.{did_you_mean(name, [QUERY])}"
                self.findings.error((*path, "with", name), message, "it takes `query` alone", at_key=True)
            if QUERY not in step.with_:
                self.findings.error((*path, "tool"), "a search needs a `query`", 'add with: {query: "{{ ... }}"}')
        if isinstance(tool, model.SandboxTool) and CODE not in step.with_:
            self.findings.error((*path, "tool"), "a sandbox needs `code` to run", 'add with: {code: "{{ ... }}"}')
        return {result}

    def _call(self, path: KeyPath, step: model.CallStep, known: set[str]) -> set[str]:
        result = step.as_ or step.call
        if not self.findings.known(step.call, self.spec.modules, (*path, "call"), "module"):
            return {self._meant(result, step.call, self.spec.modules, step.as_)}
        inputs = self.spec.modules[step.call].inputs
        for name in step.with_:
            if name not in inputs:
                message = f"the module {step.call!r} has no input {name!r}.{did_you_mean(name, inputs)}"
                hint = f"its inputs are: {', '.join(inputs)}"
                self.findings.error((*path, "with", name), message, hint, at_key=True)
        misspelled = {closest(name, inputs) for name in step.with_ if name not in inputs}
        for name, kind in inputs.items():
            if name in step.with_:
                self._uses((*path, "with", name), step.with_[name], known, result)
                self._constant((*path, "with", name), step.with_[name], kind)
                continue
            self.needs.setdefault(result, set()).add(name)
            if name not in known and name not in misspelled:
                self.unset.append(((*path, "call"), name, step.call))
        return {result}

    def _meant(self, result: str, said: str, known: Mapping[str, object], as_: str | None) -> str:
        """The variable that a step makes which names what is not there: that of what was probably meant."""
        meant = closest(said, known)
        self.meant |= {meant} if meant is not None else set()
        return result if as_ is not None or meant is None else meant

    # --- values ---

    def _condition(self, path: KeyPath, value: str, known: set[str]) -> None:
        self._uses(path, value, known)
        if "{{" not in value:
            self.findings.error(path, f"{value!r} is a text, which is always true", _braces(value))

    def _constant(self, path: KeyPath, value: Any, kind: str) -> None:
        """An error where a value that is no expression is not of the input's type."""
        if "{" in str(value):
            return
        try:
            coerce(value, parse_type(kind))
        except ValueError as error:
            self.findings.error(path, f"this input is of type {kind}: {error}")

    def _uses(self, path: KeyPath, value: Any, known: set[str], result: str | None = None) -> None:
        names = self.findings.names(path, value)
        if result is not None:
            self.needs.setdefault(result, set()).update(names)
        self.unset += [(path, name, "") for name in sorted(names - known)]
        if isinstance(value, str) and re.fullmatch(r"[A-Za-z_]\w*(\.\w+)+", value) and value.split(".")[0] in known:
            self.findings.warning(path, f"this is the text {value!r}, not a value", _braces(value))
        for name, field in attributes_in(value):
            outputs = self.results.get(name)
            if outputs is not None and name in known and field not in outputs:
                hint = f"it has: {', '.join(outputs)}"
                self.findings.error(path, f"{name!r} has no output {field!r}.{did_you_mean(field, outputs)}", hint)

    def _report_unset(self) -> None:
        """Names used before anything sets them; where steps wait for each other, the cycle is named."""
        made = set(self.needs)
        circle = _circle(self.needs)
        everything = made | set(self.spec.program.inputs)
        for path, name, module in self.unset:
            if name in self.meant:
                continue
            if name in circle:
                message = f"{name!r} is used before it is made, and the steps need each other in a cycle: {' -> '.join(circle)}"
                self.findings.error(path, message, "set a first value before, or break the cycle")
            elif name in made:
                message = f"{name!r} is used before the step that makes it"
                self.findings.error(path, message, "move that step up, or `set` a first value")
            elif module:
                message = f"the module {module!r} needs {name!r}, and nothing makes it.{did_you_mean(name, everything)}"
                self.findings.error(path, message, f'give it to the call: with: {{{name}: "{{{{ ... }}}}"}}')
            else:
                message = f"nothing makes {name!r}.{did_you_mean(name, everything)}"
                self.findings.error(path, message, f"known are: {', '.join(sorted(everything))}")


def _circle(needs: Mapping[str, set[str]]) -> list[str]:
    """Steps that wait for each other, if any do."""
    try:
        graph = {name: {n for n in uses if n in needs and n != name} for name, uses in needs.items()}
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return list(reversed(error.args[1]))
    return []


def _results(spec: model.Spec) -> dict[str, list[str]]:
    """Variable -> its outputs, for those that nothing but calls of one module make."""
    makers: dict[str, set[str]] = {name: {""} for name in spec.program.inputs}
    for step in walk(spec.program.steps):
        match step:
            case model.CallStep():
                makers.setdefault(step.as_ or step.call, set()).add(step.call)
            case model.ToolStep():
                makers.setdefault(step.as_ or step.tool, set()).add("")
            case model.SetStep():
                for name in step.set:
                    makers.setdefault(name, set()).add("")
            case model.ForStep():
                makers.setdefault(next(iter(step.for_)), set()).add("")
    only = {name: next(iter(modules)) for name, modules in makers.items() if len(modules) == 1}
    return {name: list(spec.modules[module].outputs) for name, module in only.items() if module in spec.modules}


def _braces(value: str) -> str:
    return f'for its value write "{{{{ {value} }}}}"'
