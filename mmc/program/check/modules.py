"""Models, modules and their templates."""

from __future__ import annotations

from collections.abc import Iterator

import jinja2

from mmc.errors import Diagnostic, InvalidError
from mmc.program.check.findings import Findings
from mmc.program.expression import names_in
from mmc.program.outputs import enum_file, format_of
from mmc.prompt import Template
from mmc.spec import model
from mmc.spec.env import REFERENCE
from mmc.spec.marks import KeyPath
from mmc.spec.types import closest, did_you_mean

SOURCES = ("hf", "path", "package")
"""What a local model's source begins with."""


def check_modules(findings: Findings) -> None:
    """Models, types, templates, alternatives, candidates and adapters of all modules."""
    _models(findings)
    for name, module in findings.spec.modules.items():
        path: KeyPath = ("modules", name)
        findings.known(module.model, findings.spec.models, (*path, "model"), "model")
        for key, kind in module.inputs.items():
            findings.type((*path, "inputs", key), kind)
        for key, declared in module.outputs.items():
            _output(findings, (*path, "outputs", key), declared, module)
        if module.format == "text" and len(module.outputs) > 1:
            message = "format text reads one output, but this module declares several"
            findings.error((*path, "format"), message, "use json or sections")
        template = check_template(findings, (*path, "template"), module.template, name)
        for i, other in enumerate(module.alternatives):
            check_template(findings, (*path, "alternatives", i), other, name)
        _candidates(findings, path, module, template)
    for name in findings.spec.adapters:
        findings.known(name, findings.spec.modules, ("adapters", name), "module", at_key=True)


def _models(findings: Findings) -> None:
    """Sources and keys, and what a model behind an API cannot do."""
    spec = findings.spec
    remote: dict[str, model.RemoteModel] = {}
    for name, declared in spec.models.items():
        path: KeyPath = ("models", name)
        if isinstance(declared, model.LocalModel):
            _sources(findings, path, declared.source)
            if declared.sampler is not None:
                _key(findings, (*path, "sampler", "api_key"), declared.sampler.api_key)
            continue
        remote[name] = declared
        _key(findings, (*path, "api_key"), declared.api_key)
    for name, module in spec.modules.items():
        if module.model in remote and module.constrain and not _can_constrain(remote[module.model], module):
            message = f"a `type: {remote[module.model].type}` model is constrained to JSON alone"
            findings.error(("modules", name, "constrain"), message, "set `format: json`, or use a `type: local` model")
        if module.model in remote and name in spec.adapters:
            findings.error(("adapters", name), "adapters need a `type: local` model")
    for name in spec.models.keys() - used_models(spec):
        findings.warning(("models", name), f"nothing uses the model {name!r}", at_key=True)


def _key(findings: Findings, path: KeyPath, key: str | None) -> None:
    if key is not None and not REFERENCE.fullmatch(key):
        findings.error(
            path, "a key does not belong in a file", "put it into an environment variable and write ${env:NAME}"
        )


def _can_constrain(declared: model.RemoteModel, module: model.Module) -> bool:
    return format_of(module) == "json" or (isinstance(declared, model.OpenAiModel) and declared.structured == "vllm")


def _sources(findings: Findings, path: KeyPath, declared: str | list[str]) -> None:
    sources = [declared] if isinstance(declared, str) else declared
    for i, source in enumerate(sources):
        if source.partition(":")[0] not in SOURCES or ":" not in source:
            place = (*path, "source", i) if isinstance(declared, list) else (*path, "source")
            hint = "write hf:OWNER/NAME, path:FOLDER or package:PACKAGE/FILE.gguf"
            findings.error(place, f"{source!r} does not say where the weights come from", hint)
    if not sources:
        findings.error((*path, "source"), "no source is named", "write hf:OWNER/NAME, for example")


def used_models(spec: model.Spec) -> set[str]:
    """The models that modules, the proposer or teachers name."""
    found = {module.model for module in spec.modules.values()}
    found |= set(model.searched_models(spec))
    teachers = (*spec.compile.distill.teachers, *spec.compile.weights.teachers)
    return found | {teacher.model for teacher in teachers if teacher.model is not None}


def _output(findings: Findings, path: KeyPath, declared: model.OutputType, module: model.Module) -> None:
    if isinstance(declared, str):
        findings.type(path, declared)
    elif isinstance(declared, model.EnumType):
        _enum(findings, (*path, "enum"), declared.enum, module)
    else:
        if not declared:
            findings.error(path, "an object needs named types", "write {name: str}, for example")
        for key, kind in declared.items():
            findings.type((*path, key), kind)


def _enum(findings: Findings, path: KeyPath, declared: list[str] | str, module: model.Module) -> None:
    if isinstance(declared, list):
        if len(set(declared)) < max(2, len(declared)):
            findings.error(path, "an enum needs two or more different texts")
    elif "{{" in declared:
        for name in sorted(findings.names(path, declared) - set(module.inputs)):
            hint = f"its inputs are: {', '.join(module.inputs) or 'none'}"
            message = f"{name!r} is not an input of this module.{did_you_mean(name, module.inputs)}"
            findings.error(path, message, hint)
    elif findings.resolve(path, declared) is not None:
        try:
            enum_file(findings.loaded, path, declared)
        except InvalidError as error:
            findings.found += error.diagnostics


def check_template(findings: Findings, path: KeyPath, name: str, of: str) -> Template | None:
    """The template ``name``, checked against the inputs of the module ``of``."""
    module = findings.spec.modules[of]
    template = findings.template(path, name)
    if template is None:
        return None
    findings.found += _undeclared(template, of, module)
    misspelled = {closest(name, module.inputs) for name in template.variables - set(module.inputs)}
    for unused in sorted(set(module.inputs) - template.variables - misspelled):
        if not any(unused in _names_quietly(declared) for declared in module.outputs.values()):
            message = f"the template {name} does not use this input"
            findings.warning(("modules", of, "inputs", unused), message, at_key=True)
    return template


def _undeclared(template: Template, of: str, module: model.Module) -> Iterator[Diagnostic]:
    for unknown in sorted(template.variables - set(module.inputs)):
        line, source = template.line_of(unknown)
        message = f"the template uses {unknown!r}, which is not an input of the module {of!r}"
        hint = f"declare it under modules.{of}.inputs; declared are: {', '.join(module.inputs) or 'none'}."
        hint += did_you_mean(unknown, module.inputs)
        yield Diagnostic(str(template.path), line, source.find(unknown) + 1, message, hint, source=source)


def _candidates(findings: Findings, path: KeyPath, module: model.Module, template: Template | None) -> None:
    for slot in module.candidates:
        if template is not None and slot not in template.slots:
            known = ", ".join(template.slots) or "none"
            message = f"the template has no slot {slot!r}; it has: {known}.{did_you_mean(slot, template.slots)}"
            findings.error((*path, "candidates", slot), message, at_key=True)


def _names_quietly(declared: model.OutputType) -> set[str]:
    try:
        return names_in(declared.enum) if isinstance(declared, model.EnumType) else set()
    except jinja2.TemplateSyntaxError:
        return set()
