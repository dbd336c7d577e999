"""The stages of a compile: models, templates and specs they name, keys that do nothing, what cannot be tuned."""

from __future__ import annotations

from collections.abc import Sequence

from mmc.errors import Diagnostic, InvalidError
from mmc.program.check.findings import Findings
from mmc.program.check.modules import check_template
from mmc.spec import model
from mmc.spec.load import LoadedSpec, spec_file
from mmc.spec.marks import KeyPath
from mmc.spec.searches import may_turn
from mmc.spec.tuning import trained_modules, tuning_problems


def check_stages(findings: Findings) -> None:
    """What `compile` names, and what in it has no effect."""
    spec = findings.spec
    proposer = getattr(spec.compile.prompts, "proposer", None)
    if proposer is not None:
        findings.known(proposer, spec.models, ("compile", "prompts", "proposer"), "model")
    for key, values in getattr(spec.compile.prompts, "knobs", {}).items():
        _knob(findings, ("compile", "prompts", "knobs", key), key, values)
    for stage, teachers in (("distill", spec.compile.distill.teachers), ("weights", spec.compile.weights.teachers)):
        for i, teacher in enumerate(teachers):
            _teacher(findings, ("compile", stage, "teachers", i), teacher)
    _idle(findings)


def _knob(findings: Findings, path: KeyPath, key: str, values: Sequence[object]) -> None:
    """That a search may set the key, and that the spec can have each of the values there."""
    if not may_turn(key):
        message = f"{key} cannot be a knob"
        hint = "knobs are keys of `tools` and `program`, and a module's `max_tokens` and `model`"
        findings.error(path, message, hint, at_key=True)
        return
    try:
        model.value_at(findings.spec, key)
    except LookupError:
        findings.error(path, f"there is no key {key} in this spec", at_key=True)
        return
    for i, value in enumerate(values):
        try:
            findings.loaded.with_values({key: value})
        except InvalidError as error:
            findings.error((*path, i), f"{key} cannot have this value: {error.diagnostics[0].message}")
        except KeyError:
            findings.error(path, f"{key} leads through something that is no mapping", at_key=True)
        else:
            if key.startswith("modules.") and key.endswith(".model"):
                findings.known(str(value), findings.spec.models, (*path, i), "model")


def untunable(loaded: LoadedSpec) -> list[Diagnostic]:
    """What keeps the stages of the strategy from being run, each at the stage's block."""
    found = []
    for name in dict.fromkeys(loaded.spec.compile.strategy):
        config = getattr(loaded.spec.compile, name)
        if isinstance(config, model.Tuning):
            problems = tuning_problems(loaded.spec, config)
            found += [loaded.diagnostic(("compile", name), text, at_key=True) for text in problems]
    return found


def _teacher(findings: Findings, path: KeyPath, teacher: model.Teacher) -> None:
    if teacher.model is not None:
        findings.known(teacher.model, findings.spec.models, (*path, "model"), "model")
    if teacher.spec is not None:
        folder = findings.resolve((*path, "spec"), teacher.spec)
        if folder is not None and not spec_file(folder).is_file():
            findings.error((*path, "spec"), f"{teacher.spec}: there is no such spec or build")
    for name, template in teacher.templates.items():
        if findings.known(name, findings.spec.modules, (*path, "templates", name), "module", at_key=True):
            check_template(findings, (*path, "templates", name), template, name)


def _idle(findings: Findings) -> None:
    """Keys of `weights` that change nothing beside the others."""
    weights = findings.spec.compile.weights
    path: KeyPath = ("compile", "weights")
    if "clip" in weights.model_fields_set and weights.inner_epochs == 1:
        message = "`clip` does nothing with `inner_epochs: 1`: the policy that is trained is the one that sampled"
        findings.warning((*path, "clip"), message, at_key=True)
    if "importance" in weights.model_fields_set and not weights.teachers and _exact(findings.spec):
        message = "`importance` does nothing without `teachers` in float32: sampling and training agree"
        findings.warning((*path, "importance"), message, at_key=True)


def _exact(spec: model.Spec) -> bool:
    """Whether what is trained surely runs in float32, on whatever machine, and samples itself."""
    models = [spec.models.get(spec.modules[name].model) for name in trained_modules(spec)]
    return all(
        isinstance(found, model.LocalModel) and found.dtype == "float32" and found.sampler is None for found in models
    )
