"""Full models with the adapters merged into them, as transformers loads them: one folder an adapter."""

from __future__ import annotations

from pathlib import Path

from mmc.build.export.base import ExportJob, is_lora
from mmc.errors import UsageError


def export_merged(job: ExportJob) -> None:
    """One folder for every adapter; the only one is the folder itself. Raises UsageError when there is none."""
    parts = {path: model for model in job.modules for path in job.adapters(model).values()}
    if not parts:
        raise UsageError("no module of this program has an adapter, so there is nothing to merge")
    names = {path: path.name for path in parts}
    if len(set(names.values())) < len(names):
        raise UsageError("two adapters have the same name; compile the program once more to name them apart")
    for path, model in parts.items():
        modules = [name for name, folder in job.adapters(model).items() if folder == path]
        _merge(job.weights(model).folder, path, job.place(path.name, len(parts)))
        card = _card(job.program.spec.name, job.weights(model).source, modules)
        (job.place(path.name, len(parts)) / "README.md").write_text(card, encoding="utf-8")


def _merge(base: Path, adapter: Path, out: Path) -> None:
    """Adds the adapter to the weights in float32, then stores them in the precision the base has."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from mmc.engine.weights import quiet_transformers

    with quiet_transformers(), torch.no_grad():
        if not is_lora(adapter):
            model = AutoModelForCausalLM.from_pretrained(adapter, dtype="auto")
        else:
            from peft import PeftModel

            plain = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
            stored = plain.dtype
            model = PeftModel.from_pretrained(plain.float(), str(adapter)).merge_and_unload(safe_merge=True).to(stored)
        model.save_pretrained(out)
        AutoTokenizer.from_pretrained(base).save_pretrained(out)


def _card(name: str, base: str, modules: list[str]) -> str:
    return f"""# {name}: {", ".join(modules)}

{base} with the adapter of the modules {", ".join(modules)} of the program {name} merged into it. It loads with transformers
as it is, and expects the prompts of those modules: `mmc render BUILD` prints them. Licence: that of the base model governs.
"""
