"""A build as a repository of Hugging Face's hub: everything that running it needs, and a model card."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import yaml

from mmc.build.export.base import ExportJob
from mmc.build.program import spec_paths
from mmc.errors import EnvironmentProblem, InvalidError
from mmc.spec import rewrite
from mmc.spec.load import LoadedSpec
from mmc.spec.marks import KeyPath
from mmc.spec.model import PythonTool

CARRIED = ("templates", "adapters", "mmc.lock", "manifest.json", "scores.json")
"""What of a build goes along. Its report shows examples of the data, which does not."""
_PYTHON = '"type":"python"'


def export_hub(job: ExportJob) -> None:
    """Fills the folder. Raises InvalidError when what is exported is no build."""
    loaded = job.program.loaded
    if not (loaded.folder / "manifest.json").is_file():
        raise InvalidError([loaded.diagnostic((), "this is no build folder", "compile it first: mmc compile SPEC")])
    for name in CARRIED:
        source = loaded.folder / name
        if source.is_dir():
            shutil.copytree(source, job.out / name)
        elif source.is_file():
            shutil.copyfile(source, job.out / name)
    text = rewrite(loaded.text, _changes(loaded, job.out))
    (job.out / "program.yaml").write_text(text, encoding="utf-8")
    (job.out / "README.md").write_text(_card(loaded), encoding="utf-8")


def _changes(loaded: LoadedSpec, out: Path) -> dict[KeyPath, object]:
    """How the spec differs: corpora and lists that a run reads are copied and lie in ``files``; data, what search or training
    alone would read, and a metric that needs somebody's Python stay at home.
    """
    spec = loaded.spec
    changes: dict[KeyPath, object] = {("origin", "folder"): "."} if spec.origin is not None else {}
    if spec.data is not None:
        changes["data",] = None
    if spec.metric is not None and _PYTHON in spec.metric.model_dump_json():
        changes["metric",] = None
    if spec.shaping:
        changes["shaping",] = {}
    for stage in ("distill", "weights"):
        if getattr(spec.compile, stage).teachers:
            changes["compile", stage, "teachers"] = []
    changes |= {("modules", name, "alternatives"): [] for name, module in spec.modules.items() if module.alternatives}
    changes |= {("tools", name, "record"): None for name, tool in spec.tools.items() if tool.record is not None}
    for path, value in spec_paths(spec):
        if path[0] in ("tools", "modules") and not {"alternatives", "record"} & set(path):
            name = f"files/{'-'.join(map(str, path[1:-1]))}-{loaded.resolve(value).name}"
            (out / "files").mkdir(exist_ok=True)
            shutil.copyfile(loaded.resolve(value), out / name)
            changes[path] = name
    return changes


def _card(loaded: LoadedSpec) -> str:
    """README.md: what the hub reads at its head, then what people read."""
    spec, manifest = loaded.spec, json.loads((loaded.folder / "manifest.json").read_text(encoding="utf-8"))
    bases = _bases(loaded)
    head: dict[str, Any] = {"library_name": "peft", "pipeline_tag": "text-generation", "tags": ["mmc", "lora"]}
    if bases:
        head["base_model"] = bases
    rows = "\n".join(
        f"| {s['stage']} | {s['score']:.3f} | {s['low']:.3f} to {s['high']:.3f} | {s['n']} |"
        for s in manifest["stages"]
    )
    modules = "\n".join(
        f"| {name} | {m.model} | {spec.adapters.get(name, 'none')} |" for name, m in spec.modules.items()
    )
    return f"""---
{yaml.safe_dump(head, sort_keys=False).strip()}
---

# {spec.name}

{spec.description}

A program of {len(spec.modules)} modules, compiled by mmc: `program.yaml` says what it does, `templates` what it asks, `adapters`
hold what was trained.

```sh
hf download OWNER/NAME --local-dir {spec.name}
mmc run {spec.name} {" ".join(f"--input {name}=..." for name in spec.program.inputs)}
mmc serve {spec.name}
```

Templates may hold demonstrations from the training data; the data themselves are not part of this repository.
{manifest["metric"]} on held-out data:

| after | score | 95% interval | examples |
|---|---|---|---|
{rows}

| module | model | adapter |
|---|---|---|
{modules}
{_functions(loaded)}
Licence: that of the base model governs; mmc adds no condition.
"""


def _bases(loaded: LoadedSpec) -> list[str]:
    """The hub's names of the local models."""
    found = []
    for model in loaded.spec.models.values():
        source = getattr(model, "source", [])
        sources = [source] if isinstance(source, str) else source
        found += [one.removeprefix("hf:").partition("@")[0] for one in sources if one.startswith("hf:")][:1]
    return list(dict.fromkeys(found))


def _functions(loaded: LoadedSpec) -> str:
    names = [tool.function for tool in loaded.spec.tools.values() if isinstance(tool, PythonTool)]
    if not names:
        return ""
    return f"\nIt calls Python functions that are not part of this repository: {', '.join(names)}.\n"


def push(folder: Path, repo: str) -> str:
    """Uploads a folder to a repository of the hub, made private where there is none; its address.

    Raises EnvironmentProblem when the hub cannot be reached or gives no access.
    """
    import httpx
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    if os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0"):
        raise EnvironmentProblem(f"{folder} is written, but HF_HUB_OFFLINE is set, so nothing can be pushed")
    if get_token() is None:
        raise EnvironmentProblem(f"{folder} is written, but there is no token: hf auth login, or set HF_TOKEN")
    api = HfApi()
    try:
        address = api.create_repo(repo, private=True, exist_ok=True)
        api.upload_folder(repo_id=repo, folder_path=folder, commit_message=f"Program {folder.name}, exported by mmc")
    except HFValidationError as error:
        raise EnvironmentProblem(
            f"{folder} is written, but {repo!r} cannot be a repository: {_first(error)}"
        ) from error
    except (HfHubHTTPError, httpx.HTTPError, OSError) as error:
        raise EnvironmentProblem(f"{folder} is written, but the hub gave: {_first(error)}") from error
    return str(address)


def _first(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:300] if text else type(error).__name__
