"""What is trained: the adapters (or all weights) of the trained modules, and the optimizer over them; here or in workers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import cos, pi
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch

from mmc.engine.adapters import options
from mmc.engine.base import Engine, seed_of
from mmc.engine.local import LocalEngine
from mmc.engine.memory import memory_for
from mmc.errors import UsageError
from mmc.files import whole_file, whole_folder
from mmc.mmgrpo.imitate import Sentence, imitate
from mmc.mmgrpo.update import Reduce, TrainingCall, UpdateReport, alone, update
from mmc.program.graph import Program
from mmc.spec.model import Distill, MmGrpo, Spec, Training, Tuning
from mmc.spec.tuning import adapter_of, trained_modules, tuning_problems
from mmc.trie.budget import LEAST


class Learner(Protocol):
    """What a training changes, wherever it is."""

    @property
    def names(self) -> Mapping[str, str]:
        """Trained module -> name of its adapter."""
        ...

    @property
    def engine(self) -> Any:
        """Tokenizes what teachers wrote, as :class:`LocalEngine` does."""
        ...

    def set_rate(self, rate: float, base: float) -> None:
        """Sets the learning rate of every adapter: ``rate``, or its own in the same proportion to ``base``."""
        ...

    def update(self, calls: Sequence[TrainingCall], config: MmGrpo, seed: int) -> UpdateReport:
        """The optimizer steps over one step's calls. ``seed`` is for what draws in training: dropout."""
        ...

    def imitate(self, sentences: Sequence[Sentence], config: Distill, seed: int) -> tuple[float, float]:
        """One step towards ``sentences``: their loss, and the norm of the gradient."""
        ...

    def training_tokens(self) -> int:
        """Distinct tokens of one forward and backward that the memory free now allows."""
        ...

    def save(self, folder: Path) -> dict[str, Path]:
        """Writes the adapters below ``folder``, whole or not at all; module -> its adapter's folder."""
        ...

    def load(self, folder: Path) -> None:
        """Puts back what :meth:`save` wrote, in place."""
        ...

    def save_optimizer(self, file: Path) -> None:
        """Writes the optimizer's state."""
        ...

    def load_optimizer(self, file: Path) -> None:
        """Puts back what :meth:`save_optimizer` wrote."""
        ...


@runtime_checkable
class TrainsElsewhere(Protocol):
    """Engines whose model is trained in other processes."""

    def make_learner(
        self, program: Program, config: Tuning, label: str, seed: int, initial: Mapping[str, Path]
    ) -> Learner:
        """As :func:`make_policy`."""
        ...


LESS = "free memory and give the same command, which goes on after the last step, or lower the stage's `forest_tokens`"
"""What to do about a step that does not fit."""


@dataclass(frozen=True)
class Policy:
    """The tensors that are trained on one engine, a :class:`Learner`. ``names`` is trained module -> name of its adapter."""

    engine: LocalEngine
    names: Mapping[str, str]
    optimizer: torch.optim.Optimizer

    @property
    def adapters(self) -> list[str]:
        return list(dict.fromkeys(self.names.values()))

    def update(self, calls: Sequence[TrainingCall], config: MmGrpo, seed: int, reduce: Reduce = alone) -> UpdateReport:
        torch.manual_seed(seed)
        with memory_for("a step of training", LESS):
            return update(self.engine, self.optimizer, calls, config, reduce)

    def imitate(
        self, sentences: Sequence[Sentence], config: Distill, seed: int, reduce: Reduce = alone
    ) -> tuple[float, float]:
        torch.manual_seed(seed)
        with memory_for("a step of training", LESS):
            return imitate(self.engine, self.optimizer, sentences, config, reduce)

    def training_tokens(self, processes: int = 1) -> int:
        """... where ``processes`` share that memory."""
        return max(LEAST, min(self.engine.training_tokens(name) for name in self.adapters) // processes)

    def set_rate(self, rate: float, base: float) -> None:
        """Sets the learning rate of every adapter: ``rate``, or its own in the same proportion to ``base``."""
        for group in self.optimizer.param_groups:
            group["lr"] = group["own"] * rate / base

    def save(self, folder: Path) -> dict[str, Path]:
        """Writes the adapters below ``folder``, whole or not at all; module -> its adapter's folder."""
        with whole_folder(folder) as new:
            for name in self.adapters:
                self.engine.adapters.save(name, new / short(name))
        return {module: folder / short(name) for module, name in self.names.items()}

    def load(self, folder: Path) -> None:
        """Puts back what :meth:`save` wrote, in place."""
        for name in self.adapters:
            self.engine.adapters.restore(name, folder / short(name))

    def save_optimizer(self, file: Path) -> None:
        torch.save(self.optimizer.state_dict(), file)

    def load_optimizer(self, file: Path) -> None:
        # Each tensor goes on to its parameter's device; where it was written need not exist here.
        self.optimizer.load_state_dict(torch.load(file, weights_only=True, map_location="cpu"))


def short(name: str) -> str:
    """The name of an adapter without that of its training."""
    return name.rpartition(".")[2]


def make_learner(
    program: Program,
    engines: Mapping[str, Engine],
    config: Tuning,
    label: str,
    seed: int,
    initial: Mapping[str, Path],
) -> Learner:
    """What trains: in this process (see :func:`make_policy`), or where the engines' models are."""
    if isinstance(engines, TrainsElsewhere):
        return engines.make_learner(program, config, label, seed, initial)
    return make_policy(program, engines, config, label, seed, initial)


def make_policy(
    program: Program,
    engines: Mapping[str, Engine],
    config: Tuning,
    label: str,
    seed: int,
    initial: Mapping[str, Path],
) -> Policy:
    """Puts the adapters in place and an AdamW over them. ``initial``: module -> adapter folder to go on from.

    Raises UsageError when nothing can be trained or a setting would do nothing.
    """
    spec = program.spec
    if problems := tuning_problems(spec, config):
        raise UsageError("; ".join(problems))
    engine = _engine(spec, engines)
    names = {module: f"{label}.{name}" for module, name in adapter_of(spec, config).items()}
    rates = _rates(spec, names, config)
    groups = []
    for name, rate in rates.items():
        _begin(engine, name, [m for m, n in names.items() if n == name], config, seed, initial)
        tensors = list(engine.adapters.parameters(name).values())
        groups.append({"params": tensors, "lr": rate, "own": rate})
    # Not fused: PyTorch does not count a fused step as a change of its tensors, so sampling would go on with the old copies.
    return Policy(engine, names, torch.optim.AdamW(groups, betas=(0.9, 0.99), weight_decay=0.0))


TuningT = TypeVar("TuningT", bound=Tuning)


def bounded(config: TuningT, policy: Learner, folder: Path) -> TuningT:
    """``config`` with a bound on forests: as the spec says, or what the free memory allows. That is kept in ``folder``, so that
    a training that is resumed where less is free goes on with the same sums.
    """
    if config.forest_tokens is not None:
        return config
    file = folder / "forest_tokens"
    if not file.exists():
        with whole_file(file) as new:
            new.write_text(f"{policy.training_tokens()}\n", encoding="utf-8")
    return config.model_copy(update={"forest_tokens": int(file.read_text(encoding="utf-8"))})


def _rates(spec: Spec, names: Mapping[str, str], config: Tuning) -> dict[str, float]:
    """Adapter -> its learning rate."""
    rates = dict.fromkeys(names.values(), config.learning_rate)
    for module, name in names.items():
        train = spec.modules[module].train
        if isinstance(train, Training) and train.learning_rate is not None:
            rates[name] = train.learning_rate
    return rates


def _begin(
    engine: LocalEngine,
    name: str,
    modules: Iterable[str],
    config: Tuning,
    seed: int,
    initial: Mapping[str, Path],
) -> None:
    """Puts one adapter in place: the one to go on from, or a fresh one."""
    folders = sorted({initial[module] for module in modules if module in initial})
    if len(folders) > 1:
        listed = ", ".join(map(str, folders))
        raise UsageError(f"weights: the adapter {short(name)!r} cannot go on from several at once ({listed})")
    if config.full:
        if any((folder / "adapter_config.json").exists() for folder in folders):
            raise UsageError("weights: `full: true` cannot go on from an adapter; start from the plain model")
        engine.adapters.create_full(name)
        if folders:
            engine.adapters.restore(name, folders[0])
    elif folders:
        if "lora" in config.model_fields_set:
            wanted, there = options(config.lora), engine.adapters.read_options(folders[0])
            if replace(wanted, targets="") != replace(there, targets=""):
                raise UsageError(
                    f"weights: training goes on from {folders[0]}, which has {there}; `lora` asks for {wanted}"
                )
        engine.adapters.load(name, folders[0])
    else:
        engine.adapters.create(name, options(config.lora), seed_of(seed, "adapter", short(name)))


def _engine(spec: Spec, engines: Mapping[str, Engine]) -> LocalEngine:
    """The one local engine that all trained modules run on."""
    engine = engines[spec.modules[trained_modules(spec)[0]].model]
    if not isinstance(engine, LocalEngine):
        raise UsageError(
            "weights: only modules on a `type: local` model can be trained; set `train: false` on the others"
        )
    return engine


def learning_rate(config: Tuning, step: int, steps: int) -> float:
    """Linear warm-up from 0, then constant or falling to ``floor`` of it at the last step."""
    if step < config.warmup:
        return config.learning_rate * (step + 1) / config.warmup
    share = (step - config.warmup) / max(1, steps - 1 - config.warmup)
    left = {"constant": 1.0, "linear": 1.0 - share, "cosine": (1.0 + cos(pi * share)) / 2}[config.schedule]
    return config.learning_rate * (left + (1.0 - left) * (1.0 if config.schedule == "constant" else config.floor))
