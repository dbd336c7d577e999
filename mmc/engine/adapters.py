"""The LoRA adapters of one model: created, loaded, switched, saved, all through PEFT.

Names of adapters are free texts for callers (a build uses folder names); PEFT's own names may hold no dots.
"""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmc.engine.prepared import Prepared
from mmc.errors import EnvironmentProblem, UsageError


@dataclass(frozen=True)
class LoraOptions:
    """What PEFT's LoraConfig is made from."""

    rank: int
    alpha: float
    dropout: float
    targets: str | list[str]
    dora: bool = False
    rslora: bool = False


FULL = "model.safetensors"
"""The file that tells a folder of whole weights from one of an adapter."""


class Adapters:
    """The adapters that hang on one model; at most one is active at a time.

    Whole sets of weights (full fine-tuning) are kept beside the model's own and switched like adapters.
    """

    def __init__(self, model: Any, base_name: str, tokenizer: Any = None) -> None:
        self._model = model
        self._base_name = base_name
        self._tokenizer = tokenizer
        self._peft: Any = None
        self._full: dict[str, dict[str, Any]] = {}
        self._plain: dict[str, Any] = {}
        """The model's own weights while another set is in."""
        self._names: dict[str, str] = {}
        self._made: dict[str, int] = {}
        """How often an adapter of that name was put in place."""
        self._active: str | None = None
        self._prepared = Prepared()
        self._enabled = True

    def check(self, name: str | None) -> None:
        """Raises EnvironmentProblem when there is no adapter of that name."""
        if name is not None and name not in self._names and name not in self._full:
            known = sorted([*self._names, *self._full]) or "none"
            raise EnvironmentProblem(f"the model has no adapter {name!r}; it has {known}")

    def create(self, name: str, options: LoraOptions, seed: int) -> None:
        """Adds a fresh adapter: A random by ``seed``, B zero. An adapter of that name is replaced. Raises UsageError when PEFT
        puts none on the layers that are asked for.
        """
        import torch
        from peft import LoraConfig

        config = LoraConfig(
            r=options.rank,
            lora_alpha=options.alpha,
            lora_dropout=options.dropout,
            target_modules=options.targets,
            use_dora=options.dora,
            use_rslora=options.rslora,
            task_type="CAUSAL_LM",
            base_model_name_or_path=self._base_name,
        )
        state = torch.random.get_rng_state()
        torch.manual_seed(seed)
        try:
            self._attach(name, config)
        except ValueError as error:
            raise UsageError(f"{error} (layers are named by `lora.targets`)") from error
        finally:
            torch.random.set_rng_state(state)

    def create_full(self, name: str) -> None:
        """Adds a copy of all the model's weights under ``name``. Raises UsageError on a model with adapters."""
        if self._peft is not None:
            raise UsageError("a model with adapters cannot be tuned in full; start from the plain model")
        self._switch(None)
        self._prepared.forget(None)
        self._full[name] = {key: p.detach().clone() for key, p in self._model.named_parameters()}

    def read_options(self, folder: Path) -> LoraOptions:
        """The options the adapter in ``folder`` was made with. Raises EnvironmentProblem when it cannot be read."""
        config = _read_config(folder)
        targets = config.target_modules
        targets = sorted(targets) if isinstance(targets, set) else targets
        return LoraOptions(
            config.r, config.lora_alpha, config.lora_dropout, targets, bool(config.use_dora), bool(config.use_rslora)
        )

    def load(self, name: str, folder: Path) -> None:
        """Adds what is saved in ``folder``, an adapter or whole weights; one of that name is replaced."""
        from peft.utils import load_peft_weights, set_peft_model_state_dict

        if (folder / FULL).exists() and not (folder / "adapter_config.json").exists():
            self.create_full(name)
            self.restore(name, folder)
            return
        config = _read_config(folder)
        try:
            weights = load_peft_weights(str(folder), device="cpu")
        except (OSError, ValueError) as error:
            raise EnvironmentProblem(f"the adapter {folder} cannot be loaded: {error}") from error
        config.inference_mode = False
        self._attach(name, config)
        set_peft_model_state_dict(self._peft, weights, adapter_name=self._names[name])

    def restore(self, name: str, folder: Path) -> None:
        """Puts what :meth:`save` wrote into an adapter that is there, in place."""
        import torch
        from peft.utils import set_peft_model_state_dict
        from safetensors.torch import load_file

        if name not in self._full:
            weights = load_file(folder / "adapter_model.safetensors")
            set_peft_model_state_dict(self._peft, weights, adapter_name=self._names[name])
            return
        from transformers import AutoModelForCausalLM

        from mmc.engine.weights import quiet_transformers

        with quiet_transformers(), torch.no_grad():
            saved = AutoModelForCausalLM.from_pretrained(folder, dtype=next(iter(self._full[name].values())).dtype)
            for key, tensor in saved.named_parameters():
                self._full[name][key].copy_(tensor)

    def save(self, name: str, folder: Path) -> None:
        """Writes an adapter in PEFT's own format, whole weights in transformers', straight into ``folder``."""
        import json

        from peft.utils import get_peft_model_state_dict
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        if name in self._full:
            self._save_full(name, folder)
            return
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

    def _save_full(self, name: str, folder: Path) -> None:
        from mmc.engine.weights import quiet_transformers

        with quiet_transformers(), self.active(name):
            self._model.save_pretrained(folder)
            if self._tokenizer is not None:
                self._tokenizer.save_pretrained(folder)

    def version(self, name: str) -> tuple[int, ...]:
        """Changes when the adapter does: when it is made or loaded anew, and, as PyTorch counts them, with changes in place."""
        return (self._made.get(name, 0), *(tensor._version for tensor in self.parameters(name).values()))

    def signature(self, name: str | None) -> Hashable:
        """Names the memory that the model reads while ``name`` is active without training; None where an update makes it anew."""
        import torch

        if name in self._full:
            return name, *(tensor.data_ptr() for tensor in self._full[name].values())
        if name is not None and self._model.dtype == torch.float32:
            return None  # a merged copy
        return name, *(tensor.data_ptr() for tensor in self._model.parameters())

    def parameters(self, name: str) -> dict[str, Any]:
        """The tensors that training ``name`` changes, by name, in a fixed order."""
        if name in self._full:
            return {key: p for key, p in sorted(self._model.named_parameters()) if key in self._full[name]}
        inner = f".{self._names[name]}."
        return {key: p for key, p in sorted(self._peft.named_parameters()) if inner in key and "lora_" in key}

    @contextmanager
    def active(self, name: str | None, train: bool = False) -> Iterator[None]:
        """Inside, the model runs with this adapter (None: without any); its tensors need gradient only to ``train``.

        Whole weights stay in until another name is asked for, so that an optimizer step after the block changes them.
        Otherwise than to train, the model runs from a prepared copy of the weights where it can: equal to rounding, and faster.
        """
        self._switch(name if name in self._full else None)
        inner = None if name is None else self._names.get(name)
        prepared = not train and not self._full and self._prepared.put(self._peft or self._model, inner)
        if not prepared:
            self._prepared.take_out()
        if self._peft is not None:
            self._enable(name in self._names and not prepared)
            if name in self._names and not prepared and self._active != name:
                self._peft.set_adapter(self._names[name])
                self._active = name
        yield from self._mode(name, train)

    def _enable(self, on: bool) -> None:
        """Lets the layers add their adapter, or not. PEFT walks over all modules for it, so only on a change."""
        if on and not self._enabled:
            self._peft.base_model.enable_adapter_layers()
        elif self._enabled and not on:
            self._peft.base_model.disable_adapter_layers()
        self._enabled = on

    def _mode(self, name: str | None, train: bool) -> Iterator[None]:
        if name is not None and train:
            for tensor in self.parameters(name).values():
                tensor.requires_grad_(True)
        was = self._model.training
        self._set_training(train)
        try:
            yield
        finally:
            self._set_training(was)

    def _set_training(self, on: bool) -> None:
        if self._model.training != on:
            self._model.train(on)

    def _switch(self, name: str | None) -> None:
        """Puts a whole set of weights into the model; None: its own."""
        if not self._full:
            return
        parameters = dict(self._model.named_parameters())
        if not self._plain:
            self._plain = {key: parameters[key].data for key in next(iter(self._full.values()))}
        for key, tensor in (self._full[name] if name is not None else self._plain).items():
            parameters[key].data = tensor

    def _attach(self, name: str, config: Any) -> None:
        from peft import PeftModel

        from mmc.engine.lora import lean

        if self._full:
            raise UsageError("a model that is tuned in full takes no adapters; use a build of it as another model")
        inner = self._names.get(name) or f"a{len(self._names)}"
        with warnings.catch_warnings():
            # PEFT asks transformers for something it has renamed; there is nothing for a user to do about it.
            warnings.simplefilter("ignore", FutureWarning)
            # Which adapter is active is set anew before each use.
            warnings.filterwarnings("ignore", "Adapter .* was active which is now deleted", UserWarning)
            self._prepared.take_out()
            if self._peft is None:
                self._peft = PeftModel(self._model, config, adapter_name=inner)
            else:
                # A new adapter does not switch layers on that are off.
                self._enable(True)
                if inner in self._peft.peft_config:
                    self._prepared.forget(inner)
                    self._peft.delete_adapter(inner)
                self._peft.add_adapter(inner, config)
        lean(self._peft)
        self._names[name] = inner
        self._made[name] = self._made.get(name, 0) + 1
        self._active, self._enabled = None, True


def _read_config(folder: Path) -> Any:
    from peft import PeftConfig

    try:
        return PeftConfig.from_pretrained(str(folder))
    except (OSError, ValueError) as error:
        raise EnvironmentProblem(f"the adapter {folder} cannot be loaded: {error}") from error


def options(lora: Any) -> LoraOptions:
    """From the spec's ``lora`` block."""
    return LoraOptions(lora.rank, lora.alpha, lora.dropout, lora.targets, lora.dora, lora.rslora)
