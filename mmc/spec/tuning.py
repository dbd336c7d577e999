"""Which adapter each trained module gets, and what does not fit together before anything is loaded."""

from __future__ import annotations

from mmc.spec.metrics import judges_of
from mmc.spec.model import LocalModel, MmGrpo, RemoteModel, Spec, Training, Tuning

SHARED = "shared"
"""Name of the adapter that all trained modules share."""


def trained_modules(spec: Spec) -> list[str]:
    """The modules whose weights are tuned; never the metric's judges."""
    judges = {judge.module for judge in judges_of(spec.metric).values()}
    return [name for name, module in spec.modules.items() if module.train and name not in judges]


def adapter_of(spec: Spec, config: Tuning) -> dict[str, str]:
    """Trained module -> the short name of its adapter."""
    trained = trained_modules(spec)
    if config.adapters == "shared":
        return dict.fromkeys(trained, SHARED)
    if config.adapters == "module":
        return {name: name for name in trained}
    found = {module: name for name, modules in config.adapters.items() for module in modules}
    return {module: found[module] for module in trained if module in found}


def tuning_problems(spec: Spec, config: Tuning) -> list[str]:
    """What keeps the weights of ``spec`` from being tuned as ``config`` says."""
    trained = trained_modules(spec)
    if not trained:
        return ["no module is trained; give one `train: true`"]
    remote = [module for module in trained if _remote(spec, module)]
    if remote:
        return [
            f"the module {m!r} runs on a remote model, which cannot be trained; give it `train: false`" for m in remote
        ]
    models = sorted({spec.modules[module].model for module in trained})
    if len(models) > 1:
        return [f"the trained modules use different models ({', '.join(models)}); train one model at a time"]
    drawn = [*_drawn(spec, models[0], config), *_drawn_ahead(spec, models[0], config)]
    return [*_groups(trained, config), *_rates(spec, config), *drawn]


def _remote(spec: Spec, module: str) -> bool:
    return isinstance(spec.models.get(spec.modules[module].model), RemoteModel)


def _drawn(spec: Spec, name: str, config: Tuning) -> list[str]:
    """What a sampler cannot be given."""
    model = spec.models.get(name)
    if not isinstance(model, LocalModel) or model.sampler is None or not (config.full or config.lora.dora):
        return []
    what = "`full: true`" if config.full else "`dora: true`"
    return [
        f"the model {name!r} has a `sampler`, and vLLM serves plain LoRA adapters alone; leave out {what} or the sampler"
    ]


def _drawn_ahead(spec: Spec, name: str, config: Tuning) -> list[str]:
    """What cannot be sampled while the model ``name`` is being trained."""
    if not isinstance(config, MmGrpo) or not config.staleness:
        return []
    model = spec.models.get(name)
    if not isinstance(model, LocalModel) or model.sampler is None:
        return [
            "`staleness` needs servers that sample while this process trains; "
            f"give the model {name!r} a `sampler`, or leave `staleness` out"
        ]
    here = [module for module, one in spec.modules.items() if one.model == name and one.constrain]
    return [
        f"the module {m!r} has `constrain: true`, which is drawn in this process, by weights that are in training meanwhile; "
        "leave out `constrain` or `staleness`"
        for m in here
    ]


def _groups(trained: list[str], config: Tuning) -> list[str]:
    if not isinstance(config.adapters, dict):
        return []
    named = [module for modules in config.adapters.values() for module in modules]
    problems = [f"{m!r} is not trained" for m in dict.fromkeys(named) if m not in trained]
    problems += [f"{m!r} stands in no group" for m in trained if m not in named]
    problems += [f"{m!r} stands in two groups" for m in dict.fromkeys(named) if named.count(m) > 1]
    return [f"`adapters` does not fit the trained modules: {'; '.join(problems)}"] if problems else []


def _rates(spec: Spec, config: Tuning) -> list[str]:
    adapters, problems = adapter_of(spec, config), []
    for module, name in adapters.items():
        train = spec.modules[module].train
        own = isinstance(train, Training) and train.learning_rate is not None
        if own and list(adapters.values()).count(name) > 1:
            problems.append(
                f"the module {module!r} has a learning rate of its own but shares its adapter {name!r}; "
                "use `adapters: module`, or a group of its own"
            )
    return problems
