"""Every static problem of a spec, its templates and its data files, found before anything is spent."""

from __future__ import annotations

import graphlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jinja2

from mmc.data import read_rows
from mmc.errors import Diagnostic, InvalidError
from mmc.program.expression import compile_value, names_in
from mmc.program.node import EXAMPLE
from mmc.program.remote import remote_problems
from mmc.program.steps import called, metric_fields, returns
from mmc.prompt import Template
from mmc.spec import model
from mmc.spec.load import LoadedSpec
from mmc.spec.marks import KeyPath
from mmc.spec.metrics import judges_of
from mmc.spec.types import did_you_mean, parse_type


def check(loaded: LoadedSpec) -> tuple[Diagnostic, ...]:
    """All problems of ``loaded``, sorted by place. Raises EnvironmentProblem when a path needs an unset variable."""
    checker = _Checker(loaded)
    checker.modules()
    checker.stages()
    checker.program()
    checker.data()
    return tuple(sorted(set(checker.found)))


class _Checker:
    def __init__(self, loaded: LoadedSpec) -> None:
        self.loaded, self.spec = loaded, loaded.spec
        self.found: list[Diagnostic] = []
        self.needs: dict[str, set[str]] = {}
        """Result of a step -> the variables it was made from, for finding cycles."""
        self.unset: list[tuple[KeyPath, str]] = []

    def error(self, path: KeyPath, message: str, hint: str = "") -> None:
        self.found.append(self.loaded.diagnostic(path, message, hint))

    # --- modules and templates ---

    def modules(self) -> None:
        for name, module in self.spec.modules.items():
            path: KeyPath = ("modules", name)
            self._known(module.model, self.spec.models, (*path, "model"), "model")
            for key, kind in module.inputs.items():
                self._type((*path, "inputs", key), kind)
            for key, declared in module.outputs.items():
                self._output((*path, "outputs", key), declared, module)
            if module.format == "text" and len(module.outputs) > 1:
                self.error(
                    (*path, "format"),
                    "format text reads one output, but this module declares several",
                    "use json or sections",
                )
            template = self._template((*path, "template"), module.template, name)
            for i, other in enumerate(module.alternatives):
                self._template((*path, "alternatives", i), other, name)
            self._candidates(path, module, template)
        for name in self.spec.adapters:
            self._known(name, self.spec.modules, ("adapters", name), "module")
        self.found += remote_problems(self.loaded)

    def stages(self) -> None:
        """Models and templates that the stages name."""
        compile_ = self.spec.compile
        proposer = getattr(compile_.prompts, "proposer", None)
        if proposer is not None:
            self._known(proposer, self.spec.models, ("compile", "prompts", "proposer"), "model")
        for stage, teachers in (("distill", compile_.distill.teachers), ("weights", compile_.weights.teachers)):
            for i, teacher in enumerate(teachers):
                path: KeyPath = ("compile", stage, "teachers", i)
                if teacher.model is not None:
                    self._known(teacher.model, self.spec.models, (*path, "model"), "model")
                for name, template in teacher.templates.items():
                    if self._known(name, self.spec.modules, (*path, "templates", name), "module"):
                        self._template((*path, "templates", name), template, name)

    def _output(self, path: KeyPath, declared: model.OutputType, module: model.Module) -> None:
        if isinstance(declared, str):
            self._type(path, declared)
        elif isinstance(declared, model.EnumType):
            self._enum((*path, "enum"), declared, module)
        else:
            for key, kind in declared.items():
                self._type((*path, key), kind)

    def _enum(self, path: KeyPath, declared: model.EnumType, module: model.Module) -> None:
        if isinstance(declared.enum, list):
            if len(set(declared.enum)) < max(2, len(declared.enum)):
                self.error(path, "an enum needs two or more different texts")
        elif "{{" in declared.enum:
            for name in self._names(path, declared.enum) - set(module.inputs):
                self.error(path, f"{name!r} is not an input of this module.{did_you_mean(name, module.inputs)}")
        else:
            file = self.loaded.resolve(declared.enum)
            if not file.is_file():
                self.error(path, f"there is no file {file}")

    def _template(self, path: KeyPath, name: str, of: str) -> Template | None:
        """The template ``name``, checked against the inputs of the module ``of``."""
        module = self.spec.modules[of]
        try:
            template = Template.load(self.loaded.resolve(name))
        except InvalidError as error:
            for problem in error.diagnostics:
                missing = problem.line == 0 and "no such template" in problem.message
                self.found.append(self.loaded.diagnostic(path, f"{name}: {problem.message}") if missing else problem)
            return None
        for unknown in sorted(template.variables - set(module.inputs)):
            line, source = template.line_of(unknown)
            message = f"the template uses {unknown!r}, which is not an input of the module {of!r}"
            hint = f"declare it under modules.{of}.inputs; declared are: {', '.join(module.inputs) or 'none'}."
            column = source.find(unknown) + 1
            hint += did_you_mean(unknown, module.inputs)
            self.found.append(Diagnostic(str(template.path), line, column, message, hint, source=source))
        for unused in sorted(set(module.inputs) - template.variables):
            if not any(unused in self._names_quietly(t) for t in module.outputs.values()):
                place = self.loaded.diagnostic(
                    ("modules", of, "inputs", unused), f"the template {name} does not use this input"
                )
                self.found.append(
                    Diagnostic(place.file, place.line, place.column, place.message, "", "warning", place.source)
                )
        return template

    def _candidates(self, path: KeyPath, module: model.Module, template: Template | None) -> None:
        for slot in module.candidates:
            if template is not None and slot not in template.slots:
                known = ", ".join(template.slots) or "none"
                message = f"the template has no slot {slot!r}; it has: {known}.{did_you_mean(slot, template.slots)}"
                self.error((*path, "candidates", slot), message)

    # --- the program ---

    def program(self) -> None:
        program = self.spec.program
        for name, kind in program.inputs.items():
            self._type(("program", "inputs", name), kind)
        known = self._steps(("program", "steps"), program.steps, set(program.inputs))
        for name, value in program.outputs.items():
            self._uses(("program", "outputs", name), value, known)
        if not program.outputs and not returns(program.steps):
            self.error(("program",), "the program has no outputs", "add outputs: {...} or a return step")
        self._report_unset()
        used = called(program.steps) | {judge.module for judge in judges_of(self.spec.metric).values()}
        for name in self.spec.modules:
            if name not in used:
                place = self.loaded.diagnostic(("modules", name), f"no step calls the module {name!r}")
                self.found.append(
                    Diagnostic(place.file, place.line, place.column, place.message, "", "warning", place.source)
                )

    def _steps(self, path: KeyPath, steps: Sequence[model.Step], known: set[str]) -> set[str]:
        """Checks steps in order; gives the variables known after them."""
        known = set(known)
        for i, step in enumerate(steps):
            known |= self._step((*path, i), step, known)
        return known

    def _step(self, path: KeyPath, step: model.Step, known: set[str]) -> set[str]:
        match step:
            case model.CallStep():
                return self._call(path, step, known)
            case model.ToolStep():
                self._known(step.tool, self.spec.tools, (*path, "tool"), "tool")
                self.needs.setdefault(step.as_ or step.tool, set())
                for name, value in step.with_.items():
                    self._uses((*path, "with", name), value, known, step.as_ or step.tool)
                return {step.as_ or step.tool}
            case model.SetStep():
                for name, value in step.set.items():
                    self._uses((*path, "set", name), value, known, name)
                return set(step.set)
            case model.IfStep():
                self._uses((*path, "if"), step.if_, known)
                return self._steps((*path, "steps"), step.steps, known) | self._steps(
                    (*path, "else"), step.else_, known
                )
            case model.RepeatStep():
                after = self._steps((*path, "steps"), step.steps, known)
                self._uses((*path, "until"), step.until, after)
                return after
            case model.ForStep():
                name, items = next(iter(step.for_.items()))
                self._uses((*path, "for", name), items, known)
                return self._steps((*path, "steps"), step.steps, known | {name})
            case model.ParallelStep():
                branches = [self._steps((*path, "parallel", i), b, known) for i, b in enumerate(step.parallel)]
                return set().union(*branches)
            case model.ReturnStep():
                for name, value in step.return_.items():
                    self._uses((*path, "return", name), value, known)
        return set()

    def _call(self, path: KeyPath, step: model.CallStep, known: set[str]) -> set[str]:
        result = step.as_ or step.call
        if not self._known(step.call, self.spec.modules, (*path, "call"), "module"):
            return {result}
        inputs = self.spec.modules[step.call].inputs
        for name in step.with_:
            if name not in inputs:
                message = f"the module {step.call!r} has no input {name!r}.{did_you_mean(name, inputs)}"
                self.error((*path, "with", name), message, f"its inputs are: {', '.join(inputs)}")
        for name in inputs:
            if name in step.with_:
                self._uses((*path, "with", name), step.with_[name], known, result)
            elif name not in known:
                self.unset.append(((*path, "call"), name))
                self.needs.setdefault(result, set()).add(name)
            else:
                self.needs.setdefault(result, set()).add(name)
        return {result}

    def _uses(self, path: KeyPath, value: Any, known: set[str], result: str | None = None) -> None:
        names = self._names(path, value)
        if result is not None:
            self.needs.setdefault(result, set()).update(names)
        self.unset += [(path, name) for name in sorted(names - known)]

    def _report_unset(self) -> None:
        """Names used before anything sets them; where steps wait for each other, the cycle is named."""
        made = set(self.needs)
        circle: list[str] = []
        try:
            graph = {name: {n for n in uses if n in made and n != name} for name, uses in self.needs.items()}
            graphlib.TopologicalSorter(graph).prepare()
        except graphlib.CycleError as error:
            circle = list(reversed(error.args[1]))
        for path, name in self.unset:
            if name in circle:
                self.error(
                    path,
                    f"{name!r} is used before it is made, and the steps need each other in a cycle: {' -> '.join(circle)}",
                    "set a first value before, or break the cycle",
                )
            elif name in made:
                self.error(
                    path, f"{name!r} is used before the step that makes it", "move that step up, or `set` a first value"
                )
            else:
                everything = made | set(self.spec.program.inputs)
                self.error(
                    path,
                    f"nothing makes {name!r}.{did_you_mean(name, everything)}",
                    f"known are: {', '.join(sorted(everything))}",
                )

    # --- data and metric ---

    def data(self) -> None:
        spec = self.spec
        gold = set(metric_fields(spec.metric, "gold"))
        outputs = {*spec.program.outputs, *(n for names in returns(spec.program.steps) for n in names)}
        for name, path in metric_fields(spec.metric, "predicted").items():
            if name not in outputs:
                message = f"the program has no output {name!r}.{did_you_mean(name, outputs)}"
                self.error(path, message, f"its outputs are: {', '.join(sorted(outputs)) or 'none'}")
        self._judges()
        self._shaping()
        if spec.data is None:
            return
        for split in ("train", "dev", "test"):
            self._split(split, getattr(spec.data, split), gold, self._judged(outputs))
        for name, tool in spec.tools.items():
            if isinstance(tool, model.Bm25Tool):
                self._rows(
                    ("tools", name, "corpus"), tool.corpus, dict.fromkeys(tool.fields, ("tools", name, "fields"))
                )

    def _judges(self) -> None:
        """Modules, inputs and verdicts that the metric's judges name."""
        for path, judge in judges_of(self.spec.metric).items():
            if not self._known(judge.module, self.spec.modules, (*path, "module"), "module"):
                continue
            module = self.spec.modules[judge.module]
            if judge.module in called(self.spec.program.steps):
                self.error(
                    (*path, "module"), f"the program calls {judge.module!r} itself; a judge is a module of its own"
                )
            for name in judge.with_:
                self._known(name, module.inputs, (*path, "with", name), f"input of {judge.module}")
            if judge.output is not None:
                self._known(judge.output, module.outputs, (*path, "output"), f"output of {judge.module}")
            elif len(module.outputs) > 1:
                listed = ", ".join(module.outputs)
                self.error(
                    path, f"{judge.module!r} has several outputs: {listed}", "say which is the verdict: `output`"
                )

    def _judged(self, outputs: Iterable[str]) -> dict[str, KeyPath]:
        """Columns of the data that the judges are shown, and where they are named."""
        found: dict[str, KeyPath] = {}
        for path, judge in judges_of(self.spec.metric).items():
            if judge.module not in self.spec.modules:
                continue
            for name in self.spec.modules[judge.module].inputs:
                place = (*path, "with", name) if name in judge.with_ else (*path, "module")
                used = self._names(place, judge.with_[name]) if name in judge.with_ else {name}
                found |= dict.fromkeys(used - set(outputs) - {EXAMPLE}, place)
        return found

    def _shaping(self) -> None:
        """Modules, their fields and the columns of the training data that shaping names."""
        for name, parts in self.spec.shaping.items():
            path: KeyPath = ("shaping", name)
            if not self._known(name, self.spec.modules, path, "module"):
                continue
            fields = {**self.spec.modules[name].outputs, **self.spec.modules[name].inputs}
            for i, part in enumerate(parts):
                place = (*path, i, "metric")
                for at in judges_of(part.metric, place):
                    self.error(at, "a judge scores whole runs; shaping takes other metrics")
                for field, where in metric_fields(part.metric, "predicted", place).items():
                    self._known(field, fields, where, f"output or input of {name}")
                if self.spec.data is not None:
                    train = self.spec.data.train
                    self._rows(("data", "train", "file"), train.file, metric_fields(part.metric, "gold", place))

    def _split(self, split: str, source: model.DataSource, gold: Iterable[str], judged: Mapping[str, KeyPath]) -> None:
        path: KeyPath = ("data", split)
        wanted: dict[str, KeyPath] = dict.fromkeys(self.spec.program.inputs, (*path, "file"))
        wanted |= {name: metric_fields(self.spec.metric, "gold")[name] for name in gold}
        wanted |= judged
        wanted |= {column: (*path, key) for key in ("id", "balance") if (column := getattr(source, key))}
        wanted |= {column: (*path, "unique", i) for i, column in enumerate(source.unique)}
        low, high = source.part
        if not 0 <= low < high <= 1:
            self.error((*path, "part"), "a part is [from, to] with 0 <= from < to <= 1")
        self._rows((*path, "file"), source.file, wanted)

    def _rows(self, path: KeyPath, name: str, wanted: Mapping[str, KeyPath]) -> None:
        """Checks that a data file can be read and that its first row has the ``wanted`` columns."""
        try:
            rows = read_rows(self.loaded.resolve(name))
        except InvalidError as error:
            for problem in error.diagnostics:
                self.found.append(
                    problem if problem.line else self.loaded.diagnostic(path, f"{problem.file}: {problem.message}")
                )
            return
        if not rows:
            self.error(path, f"{name} has no rows")
            return
        for column, place in wanted.items():
            if column not in rows[0]:
                message = f"{name} has no column {column!r}.{did_you_mean(column, rows[0])}"
                self.error(place, message, f"its columns are: {', '.join(rows[0])}")

    # --- small things ---

    def _known(self, name: str, known: Mapping[str, object], path: KeyPath, noun: str) -> bool:
        if name not in known:
            listed = ", ".join(known) or "none"
            self.error(path, f"there is no {noun} {name!r}.{did_you_mean(name, known)}", f"declared are: {listed}")
        return name in known

    def _type(self, path: KeyPath, kind: str) -> None:
        try:
            parse_type(kind)
        except ValueError as error:
            self.error(path, str(error))

    def _names(self, path: KeyPath, value: Any) -> set[str]:
        try:
            compile_value(value)
            return names_in(value)
        except jinja2.TemplateSyntaxError as error:
            self.error(path, f"not a valid expression: {error.message}")
            return set()

    def _names_quietly(self, declared: model.OutputType) -> set[str]:
        try:
            return names_in(declared.enum) if isinstance(declared, model.EnumType) else set()
        except jinja2.TemplateSyntaxError:
            return set()
