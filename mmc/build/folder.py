"""Assembles a build folder beside its place and moves it there when it is whole."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmc.build.card import adapter_card
from mmc.build.lock import make_lock, sha256_of
from mmc.build.machine import machine
from mmc.build.manifest import Manifest, StageScore, Work, stage_entries, work_entries
from mmc.build.program import program_text, template_files
from mmc.data import Example, fingerprint
from mmc.files import new_folder
from mmc.program.graph import Program
from mmc.report import ReportJob, Story, report_html


@dataclass(frozen=True)
class BuildJob:
    """The program at the end of a compile and everything its build tells about."""

    program: Program
    adapters: Mapping[str, Path]
    """Module -> adapter folder; modules that share one name the same folder."""
    data: Mapping[str, Sequence[Example]]
    stages: tuple[StageScore, ...]
    out: Path
    folders: Mapping[str, Path] = field(default_factory=dict)
    """Stage -> the folder with its result and curves."""
    ledger: Sequence[Work] = ()


def write_build(job: BuildJob) -> Path:
    """Writes ``out/<name>/v<N>`` with the next free N; gives that folder. Nothing is left when it fails."""
    home = job.out.resolve() / job.program.spec.name
    home.mkdir(parents=True, exist_ok=True)
    numbers = [int(p.name[1:]) for p in home.glob("v*") if p.name[1:].isdigit()]
    final = home / f"v{max(numbers, default=0) + 1}"
    with new_folder(final) as new:
        _fill(job, new, final)
    return final


def _fill(job: BuildJob, folder: Path, final: Path) -> None:
    names = _adapter_names(job.adapters)
    hashes = {name: _copy_adapter(job, source, folder / "adapters" / name) for source, name in names.items()}
    files = template_files(job.program)
    for needed in files.values():
        for name, source in needed.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(source, encoding="utf-8")
    templates = {module: next(iter(needed)) for module, needed in files.items()}
    adapters = {module: f"adapters/{names[source]}" for module, source in job.adapters.items()}
    stage = next((s.stage for s in reversed(job.stages) if s.kept), "start")
    text = program_text(job.program, final, templates, adapters, stage)
    (folder / "program.yaml").write_text(text, encoding="utf-8")
    lock = make_lock(job.program, job.data, hashes)
    _write_json(folder / "mmc.lock", lock)
    spec = job.program.spec
    manifest = Manifest(
        name=spec.name,
        version=final.name,
        metric=spec.metric.type if spec.metric else "none",
        stages=stage_entries(job.stages),
        ledger=work_entries(job.ledger),
        machine=machine(),
    )
    _write_json(folder / "manifest.json", manifest.model_dump(mode="json"))
    _write_json(folder / "scores.json", _scores(job))
    page = report_html(_report(job, manifest, lock, final))
    (folder / "report.html").write_text(page, encoding="utf-8")


def _scores(job: BuildJob) -> dict[str, Any]:
    """Scores of the test examples after every stage, by the example's id."""
    ids = [example.id for example in job.data[job.stages[0].split]]
    return {
        "split": job.stages[0].split,
        "examples": ids,
        "data": fingerprint(job.data[job.stages[0].split]),
        "stages": {stage.stage: list(stage.scores) for stage in job.stages},
    }


def _report(job: BuildJob, manifest: Manifest, lock: dict[str, Any], final: Path) -> ReportJob:
    spec = job.program.spec
    originals = {name: job.program.loaded.resolve(module.template) for name, module in spec.modules.items()}
    return ReportJob(
        title=f"{manifest.name} {manifest.version}",
        build=final,
        manifest=manifest.model_dump(),
        lock=lock,
        inputs=list(spec.program.inputs),
        prompts={
            name: (originals[name].read_text(encoding="utf-8"), template.source)
            for name, template in job.program.templates.items()
        },
        stories=[_story(stage, folder) for stage, folder in job.folders.items()],
        before=read_lines(job.stages[0].traces),
        after=read_lines(job.stages[-1].traces),
    )


def _story(stage: str, folder: Path) -> Story:
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    return Story(stage, read_lines(folder / "training/metrics.jsonl"), result if result.get("trials") else None)


def _adapter_names(adapters: Mapping[str, Path]) -> dict[Path, str]:
    """Adapter folder -> its name in the build: the folder's own, numbered when two have the same."""
    names: dict[Path, str] = {}
    for source in adapters.values():
        if source not in names:
            name, count = source.name, 2
            while name in names.values():
                name, count = f"{source.name}-{count}", count + 1
            names[source] = name
    return names


def _copy_adapter(job: BuildJob, source: Path, target: Path) -> str:
    """Copies an adapter, or whole weights where those were tuned, and writes its card; the hash of its tensors."""
    shutil.copytree(source, target)
    modules = [module for module, folder in job.adapters.items() if folder == source]
    config, tensors = target / "adapter_config.json", target / "adapter_model.safetensors"
    base = None
    if config.exists():
        base = json.loads(config.read_text(encoding="utf-8")).get("base_model_name_or_path") or "unknown"
    else:
        tensors = target / "model.safetensors"
    card = adapter_card(job.program.spec.name, base, modules, job.stages)
    (target / "README.md").write_text(card, encoding="utf-8")
    return sha256_of(tensors)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """JSON lines; none when there is no such file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
