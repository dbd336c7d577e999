"""The model card of an adapter, or of whole weights."""

from __future__ import annotations

from collections.abc import Sequence

from mmc.build.manifest import StageScore

_LORA = """Load it with PEFT:

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(BASE), THIS_FOLDER)
```
"""
_WHOLE = """Load it with transformers:

```python
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained(THIS_FOLDER)
```
"""


def adapter_card(name: str, base: str | None, modules: Sequence[str], stages: Sequence[StageScore]) -> str:
    """README.md of an adapter folder: what it is, what it was trained on, what it scored, how to load it.

    ``base`` is the model an adapter belongs to; None for whole weights, which belong to none.
    """
    rows = "\n".join(f"| {s.stage} | {s.score:.3f} | {s.low:.3f} to {s.high:.3f} | {s.n} |" for s in stages)
    head = (
        f"base_model: {base}\nlibrary_name: peft\ntags: [lora, mmc]"
        if base
        else "library_name: transformers\ntags: [mmc]"
    )
    what = "LoRA adapter" if base else "Weights"
    return f"""---
{head}
---

# {what} of the program {name}

Trained by mmc for the modules {", ".join(modules)} of `program.yaml` two folders up. They expect that
program's prompts: `mmc run` and `mmc eval` use both together.

| after | held-out score | 95% interval | examples |
|---|---|---|---|
{rows}

Licence: that of the base model governs; mmc adds no condition. {_LORA if base else _WHOLE}"""
