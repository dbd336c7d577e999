"""The LoRA adapters of one model: created, loaded, switched, saved, all through PEFT.

Names of adapters are free texts for callers (a build uses folder names); PEFT's own names may hold no dots.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmc.errors import EnvironmentProblem


@dataclass(frozen=True)
class LoraOptions:
    """What PEFT's LoraConfig is made from."""

    rank: int
    alpha: float
    dropout: float
    targets: str | list[str]


class Adapters:
    """The adapters that hang on one model; at most one is active at a time."""

    def __init__(self, model: Any, base_name: str) -> None:
        self._model = model
        self._base_name = base_name
        self._peft: Any = None
        self._names: dict[str, str] = {}
        self._active: str | None = None

    def check(self, name: str | None) -> None:
        """Raises EnvironmentProblem when there is no adapter of that name."""
        if name is not None and name not in self._names:
            raise EnvironmentProblem(f"the model has no adapter {name!r}; it has {sorted(self._names) or 'none'}")

    def create(self, name: str, options: LoraOptions, seed: int) -> None:
        """Adds a fresh adapter: A random by ``seed``, B zero. An adapter of that name is replaced."""
        import torch
        from peft import LoraConfig

        config = LoraConfig(
            r=options.rank,
            lora_alpha=options.alpha,
            lora_dropout=options.dropout,
            target_modules=options.targets,
            task_type="CAUSAL_LM",
            base_model_name_or_path=self._base_name,
        )
        state = torch.random.get_rng_state()
        torch.manual_seed(seed)
        try:
            self._attach(name, config)
        finally:
            torch.random.set_rng_state(state)

    def load(self, name: str, folder: Path) -> None:
        """Adds the adapter saved in ``folder``; one of that name is replaced."""
        from peft import PeftConfig
        from peft.utils import load_peft_weights, set_peft_model_state_dict

        try:
            config = PeftConfig.from_pretrained(str(folder))
            weights = load_peft_weights(str(folder), device="cpu")
        except (OSError, ValueError) as error:
            raise EnvironmentProblem(f"the adapter {folder} cannot be loaded: {error}") from error
        config.inference_mode = False
        self._attach(name, config)
        set_peft_model_state_dict(self._peft, weights, adapter_name=self._names[name])

    def assign(self, name: str, weights: dict[str, Any]) -> None:
        """Puts ``weights`` (as :meth:`save` writes them) into an adapter that is there, in place."""
        from peft.utils import set_peft_model_state_dict

        set_peft_model_state_dict(self._peft, weights, adapter_name=self._names[name])

    def save(self, name: str, folder: Path) -> None:
        """Writes the adapter in PEFT's own format straight into ``folder``."""
        import json

        from peft.utils import get_peft_model_state_dict
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        inner = self._names[name]
        weights = get_peft_model_state_dict(self._peft, adapter_name=inner, save_embedding_layers=False)
        save_file(
            {key: tensor.detach().cpu().contiguous() for key, tensor in sorted(weights.items())},
            folder / "adapter_model.safetensors",
            metadata={"format": "pt"},
        )
        config = self._peft.peft_config[inner].to_dict() | {"inference_mode": True}
        plain = {k: sorted(v) if isinstance(v, set) else v for k, v in config.items()}
        text = json.dumps(plain, indent=2, sort_keys=True, default=str)
        (folder / "adapter_config.json").write_text(text + "\n", encoding="utf-8")

    def parameters(self, name: str) -> dict[str, Any]:
        """The adapter's tensors by name, in a fixed order."""
        inner = f".{self._names[name]}."
        return {key: p for key, p in sorted(self._peft.named_parameters()) if inner in key and "lora_" in key}

    @contextmanager
    def active(self, name: str | None, train: bool = False) -> Iterator[None]:
        """Inside, the model runs with this adapter (None: without any); its tensors need gradient only to ``train``."""
        if self._peft is None:
            yield
            return
        if name is None:
            with self._peft.disable_adapter():
                yield
            return
        if self._active != name:
            self._peft.set_adapter(self._names[name])
            self._active = name
        if train:
            for tensor in self.parameters(name).values():
                tensor.requires_grad_(True)
        was = self._model.training
        self._model.train(train)
        try:
            yield
        finally:
            self._model.train(was)

    def _attach(self, name: str, config: Any) -> None:
        from peft import PeftModel

        inner = self._names.get(name) or f"a{len(self._names)}"
        with warnings.catch_warnings():
            # PEFT asks transformers for something it has renamed; there is nothing for a user to do about it.
            warnings.simplefilter("ignore", FutureWarning)
            if self._peft is None:
                self._peft = PeftModel(self._model, config, adapter_name=inner)
            else:
                if inner in self._peft.peft_config:
                    self._peft.delete_adapter(inner)
                self._peft.add_adapter(inner, config)
        self._names[name] = inner
        self._active = None


def options(lora: Any) -> LoraOptions:
    """From the spec's ``lora`` block."""
    return LoraOptions(lora.rank, lora.alpha, lora.dropout, lora.targets)
