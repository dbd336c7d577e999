"""A folder that vLLM serves: the adapters named by their modules, the command, and a smoke test with answers to compare with."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from mmc.build.export.base import ExportJob, is_lora
from mmc.data import load_split
from mmc.engine import open_engines
from mmc.engine.base import Choice, Constraint, JsonSchema
from mmc.engine.weights import Weights
from mmc.errors import UsageError
from mmc.program.run import RunSettings, run_all
from mmc.program.trajectory import Call

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM takes as --max-lora-rank."""
PORT = 8000


def export_vllm(job: ExportJob) -> None:
    """A folder for every local model; the only one is the folder itself."""
    calls = _calls(job)
    for model, modules in job.modules.items():
        folder = job.place(model, len(job.modules))
        folder.mkdir(exist_ok=True)
        adapters = job.adapters(model)
        served = {name: name if name in adapters and is_lora(adapters[name]) else model for name in modules}
        base = _base(job, model, folder)
        for path in dict.fromkeys(path for path in adapters.values() if is_lora(path)):
            shutil.copytree(path, folder / "adapters" / path.name)
        loras = {name: path for name, path in adapters.items() if is_lora(path)}
        script = folder / "serve.sh"
        paths = {name: f"adapters/{path.name}" for name, path in loras.items()}
        script.write_text(_script(model, base, paths, _rank(loras.values())))
        script.chmod(0o755)
        rows = [_row(job, served, call) for call in calls if call.module in served]
        (folder / "requests.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        (folder / "smoke.py").write_text((Path(__file__).parent / "smoke.py").read_text(encoding="utf-8"))
        (folder / "README.md").write_text(_readme(job.program.spec.name, base, served))


def _base(job: ExportJob, model: str, folder: Path) -> str:
    """What vLLM is to load: a hub's name, a folder of this machine, or whole weights, which are copied."""
    whole = {path for path in job.adapters(model).values() if not is_lora(path)}
    if whole and (len(whole) > 1 or set(job.adapters(model)) != set(job.modules[model])):
        raise UsageError(f"modules of {model} run with different whole weights; vLLM serves one a process: --to merged")
    if whole:
        shutil.copytree(whole.pop(), folder / "model")
        return "model"
    return _named(job.weights(model))


def _named(weights: Weights) -> str:
    kind, _, rest = weights.source.partition(":")
    return rest.partition("@")[0] if kind == "hf" else str(weights.folder)


def _rank(folders: Iterable[Path]) -> int:
    """The rank vLLM has to make room for. Raises UsageError for adapters it cannot serve."""
    most = 0
    for folder in folders:
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        if config.get("use_dora"):
            raise UsageError(f"{folder.name} is a DoRA adapter, which vLLM does not serve: --to merged")
        most = max(most, config["r"])
    if most > RANKS[-1]:
        raise UsageError(f"vLLM serves adapters of rank {RANKS[-1]} at most, not {most}: --to merged")
    return next(rank for rank in RANKS if rank >= most)


def _script(model: str, base: str, adapters: dict[str, str], rank: int) -> str:
    command = ["--served-model-name", model, "--generation-config", "vllm", "--port", f'"${{PORT:-{PORT}}}"']
    command += ["--dtype", '"${DTYPE:-auto}"']
    if adapters:
        command += ["--enable-lora", "--max-lora-rank", str(rank), "--max-loras", str(len(adapters)), "--lora-modules"]
        command += [shlex.quote(f"{name}={path}") for name, path in adapters.items()]
    return f"""#!/bin/sh
# MODEL, PORT and DTYPE may be set; float32 gives what mmc gives on a CPU. What stands after the command is passed on to vLLM.
set -e
cd "$(dirname "$0")"
exec python -m vllm.entrypoints.openai.api_server --model "${{MODEL:-{base}}}" \\
  {" ".join(command)} "$@"
"""


# --- the smoke test -----------------------------------------------------------------------------------------------


def _calls(job: ExportJob) -> Sequence[Call]:
    """LM calls of greedy runs on dev; none when the program has no data."""
    if job.program.spec.data is None or job.examples == 0:
        return ()
    examples = load_split(job.program.loaded, "dev")[: job.examples]
    settings = RunSettings("export", 0, 0, 0.0, score=False)
    runs = run_all(job.program, open_engines(job.program.loaded), examples, settings)
    return [call for run in runs for call in run.calls]


def _row(job: ExportJob, served: dict[str, str], call: Call) -> dict[str, Any]:
    """A request as vLLM takes it, and what mmc got for it."""
    reader = job.program.readers[call.module]
    body = {
        "model": served[call.module],
        "messages": [{"role": m.role, "content": m.content} for m in call.messages],
        "temperature": 0,
        "max_tokens": job.program.spec.modules[call.module].max_tokens,
    }
    constraint = reader.constraint(reader.options(call.inputs))
    if constraint is not None:
        body["structured_outputs"] = _structured(constraint)
    return {"module": call.module, "body": body, "expected": call.completion.text}


def _structured(constraint: Constraint) -> dict[str, Any]:
    """A constraint in vLLM's words."""
    if isinstance(constraint, Choice):
        return {"choice": list(constraint.options)}
    if isinstance(constraint, JsonSchema):
        return {"json": json.loads(constraint.schema)}
    return {"regex": constraint.pattern}


def _readme(name: str, base: str, served: dict[str, str]) -> str:
    rows = "\n".join(f"| {module} | `{model}` |" for module, model in served.items())
    return f"""# {name}, served by vLLM

`./serve.sh` serves the base model (`{base}`; MODEL names another place) with the adapters of this folder.
`python smoke.py` then sends the requests of `requests.jsonl` and compares each answer with what mmc got, greedily; it needs
nothing but Python. In half precision some answers differ; `DTYPE=float32 ./serve.sh` is what mmc does on a CPU.

| module | model to ask for |
|---|---|
{rows}

The adapters expect the prompts of their modules: `mmc render BUILD` prints them.
"""
