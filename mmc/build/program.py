"""program.yaml: the spec's own text, with the paths, templates and adapters of the build."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from mmc.data import SPLITS, commit_of
from mmc.data.hub import LOCAL
from mmc.program.graph import Program
from mmc.spec import rewrite
from mmc.spec.marks import KeyPath
from mmc.spec.model import Bm25Tool, EnumType, RemoteModel, Spec


def template_files(program: Program) -> dict[str, dict[str, str]]:
    """For every module its template's file in the build, and the source of every file that needs: includes too.

    Templates lie side by side under ``templates/``; one with includes gets a folder of its own.
    """
    found = {}
    for name, template in program.templates.items():
        included = template.includes
        folder = f"templates/{name}" if included else "templates"
        own = f"{folder}/{name}.j2" if not included else f"{folder}/{template.path.name}"
        found[name] = {own: template.source, **{f"{folder}/{key}": text for key, text in included.items()}}
    return found


def program_text(
    program: Program, folder: Path, templates: Mapping[str, str], adapters: Mapping[str, str], stage: str
) -> str:
    """The text of program.yaml for a build in ``folder``. ``templates`` and ``adapters`` are by module, relative to it."""
    loaded = program.loaded
    changes: dict[KeyPath, object] = {}
    for path, value in spec_paths(loaded.spec):
        moved = _moved(value, loaded.folder, folder)
        if path[-1] == "dataset" and not moved.startswith(LOCAL):
            moved = f"./{moved}"  # a folder, which must not become a name of the hub
        if moved != value:
            changes[path] = moved
    for split in SPLITS if loaded.spec.data is not None else ():
        source = getattr(loaded.spec.data, split)
        if commit := commit_of(loaded, source):
            changes["data", split, "revision"] = commit
    for module, file in templates.items():
        changes["modules", module, "template"] = file
    if adapters:
        changes["adapters",] = dict(adapters)
    parent = loaded.spec.origin.folder if loaded.spec.origin is not None else "."
    code = os.path.relpath((loaded.folder / parent).resolve(), folder)
    changes["origin",] = {"parent": loaded.sha256, "stage": stage, "folder": code}
    return rewrite(loaded.text, changes)


def _moved(value: str, old: Path, new: Path) -> str:
    """A relative path so that it still leads to the same place; others as they are."""
    kind, colon, rest = value.partition(":")
    if colon and kind == "path":
        return f"path:{_moved(rest, old, new)}"
    if re.match(r"^([a-z]+:|/|~|\$\{)", value):
        return value
    return os.path.relpath((old / value).resolve(), new)


def spec_paths(spec: Spec, templates: bool = False) -> Iterator[tuple[KeyPath, str]]:
    """Every value of a spec that may be a relative path, with where it stands; the modules' templates if asked for."""
    for name, model in spec.models.items():
        if isinstance(model, RemoteModel):
            continue
        if isinstance(model.source, str):
            yield ("models", name, "source"), model.source
        else:
            for i, source in enumerate(model.source):
                yield ("models", name, "source", i), source
    for name, tool in spec.tools.items():
        if isinstance(tool, Bm25Tool):
            yield ("tools", name, "corpus"), tool.corpus
        if tool.record is not None:
            yield ("tools", name, "record", "file"), tool.record.file
    for name, module in spec.modules.items():
        if templates:
            yield ("modules", name, "template"), module.template
        for i, alternative in enumerate(module.alternatives):
            yield ("modules", name, "alternatives", i), alternative
        for output, declared in module.outputs.items():
            if isinstance(declared, EnumType) and isinstance(declared.enum, str) and "{{" not in declared.enum:
                yield ("modules", name, "outputs", output, "enum"), declared.enum
    for stage, teachers in (("distill", spec.compile.distill.teachers), ("weights", spec.compile.weights.teachers)):
        for i, teacher in enumerate(teachers):
            place: KeyPath = ("compile", stage, "teachers", i)
            if teacher.spec is not None:
                yield (*place, "spec"), teacher.spec
            for name, template in teacher.templates.items():
                yield (*place, "templates", name), template
    if spec.data is not None:
        for split in ("train", "dev", "test"):
            source = getattr(spec.data, split)
            if source.file is not None:
                yield ("data", split, "file"), source.file
            elif source.dataset.startswith(LOCAL):
                yield ("data", split, "dataset"), source.dataset
