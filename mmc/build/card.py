"""The model card of an adapter."""

from __future__ import annotations

from collections.abc import Sequence

from mmc.build.manifest import StageScore


def adapter_card(name: str, base: str, modules: Sequence[str], stages: Sequence[StageScore]) -> str:
    """README.md of an adapter folder: what it is, what it was trained on, what it scored, how to load it."""
    rows = "\n".join(f"| {s.stage} | {s.score:.3f} | {s.low:.3f} to {s.high:.3f} | {s.n} |" for s in stages)
    return f"""---
base_model: {base}
library_name: peft
tags: [lora, mmc]
---

# LoRA adapter of the program {name}

Trained by mmc with multi-module GRPO for the modules {", ".join(modules)} of `program.yaml` two folders up. It expects that
program's prompts: `mmc run` and `mmc eval` use both together.

| after | held-out score | 95% interval | examples |
|---|---|---|---|
{rows}

Licence: that of the base model governs; mmc adds no condition. Load it with PEFT:

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(BASE), THIS_FOLDER)
```
"""
