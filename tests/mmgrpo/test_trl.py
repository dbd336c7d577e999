"""Loss and gradient of one module equal those of TRL's GRPOTrainer (1.16) on the same completions and rewards.

TRL runs in an environment of its own (`make peers`); `trl_side.py` is its side and says what is TRL's own code there: all but the
sampling. Groups have one size, as TRL's must. One of them has equal rewards: both count it in their means.

What stands for what (ours -> TRL's), where the names differ:

- gspo -> grpo with `importance_sampling_level="sequence"`: both take the geometric mean of a completion's ratios.
- `normalize` std, batch, none -> `scale_rewards` group, batch, none.
- `clip.high` of cispo -> `epsilon_high - 1`. Ours bounds the ratio at 1 + high, as MiniMax-M1 writes it (arXiv 2506.13585); TRL's
  bounds it at `epsilon_high` itself, as ScaleRL does (arXiv 2510.13786).
- `kl` -> `beta` with `use_bias_correction_kl=False`: the plain estimate of GRPO (arXiv 2402.03300, equation 4). TRL's default
  multiplies it by the ratio (DeepSeek-V3.2, arXiv 2512.02556), which has another gradient even where the ratio is 1.

The rest is equal as it stands: grpo's mean over tokens, then completions; dr_grpo's division by the limit of tokens; dapo's and
cispo's mean over all tokens of an optimizer step, however many parts it is accumulated from; 1e-4 beside the deviation.
"""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from mmc.engine.adapters import LoraOptions
from mmc.engine.base import Completion
from mmc.engine.local import LocalEngine
from mmc.mmgrpo.advantage import advantages
from mmc.mmgrpo.group import Group, Member
from mmc.mmgrpo.loss import LossName
from mmc.mmgrpo.update import ModuleTerms, UpdateReport, accumulate, training_calls
from mmc.program.trajectory import Call
from mmc.spec.model import Clip, MmGrpo
from mmc.trie.logprobs import Sampled, free_logprobs

pytestmark = pytest.mark.slow

READY = Path(__file__).parents[2] / ".peers/trl/.ready"
"""Stands when TRL's environment is whole."""
TOLERANCE = 1e-4
LIMIT = 24
"""Of tokens of a completion; longer texts are cut there, shorter ones end with the end-of-turn token."""
GROUPS: Mapping[str, Sequence[tuple[str, float]]] = {
    "What is the capital of France?": [
        ("Paris.", 1.0),
        (
            "Paris, as everybody knows who ever took a train there, or a boat up the river, or who at least read about it.",
            0.0,
        ),
        ("Lyon", 0.25),
        ("I do not know.", 0.0),
    ],
    "Write a word that rhymes with 'bright', and say how you found it.": [
        ("night", 0.1),
        (
            "light: I went through the alphabet and dropped every letter that gave no word I have ever heard anybody use.",
            0.9,
        ),
        ("light", 0.5),
        ("light: the sound is the same.", 0.7),
    ],
    "2 + 2 =": [
        ("4", 1.0),
        ("5", 0.0),
        ("4", 1.0),
        ("It depends on what is meant by a sum, which in turn depends on the group.", 0.2),
    ],
    "Say yes.": [("yes", 0.5), ("Yes!", 0.5), ("no", 0.5), ("yes", 0.5)],
}
"""Prompt -> its completions, each with its reward. Texts begin alike and repeat; the last group has no spread."""
MEMBERS = 4


@dataclass(frozen=True)
class Case:
    """A setting, whether the old log-probabilities are off the policy's, and in how many parts TRL takes the step."""

    config: MmGrpo
    shifted: bool = False
    parts: int = 1


def _config(loss: LossName, **keys: Any) -> MmGrpo:
    clip = Clip(high=0.3) if loss == "cispo" else Clip(low=0.2, high=0.3)
    return MmGrpo(loss=loss, clip=clip, **keys)


LOSS_NAMES: Sequence[LossName] = get_args(LossName)
TINY: Mapping[str, Case] = {
    **{f"{loss}-own": Case(_config(loss)) for loss in LOSS_NAMES},
    **{f"{loss}-own-kl": Case(_config(loss, kl=0.5)) for loss in LOSS_NAMES},
    **{f"{loss}-clipped": Case(_config(loss), shifted=True) for loss in LOSS_NAMES},
    **{f"{loss}-clipped-kl-parts": Case(_config(loss, kl=0.5), shifted=True, parts=4) for loss in LOSS_NAMES},
    "batch": Case(_config("grpo", normalize="batch")),
    "none": Case(_config("dr_grpo", normalize="none")),
}
REAL: Mapping[str, Case] = {
    **{f"{loss}-clipped": Case(_config(loss), shifted=True) for loss in LOSS_NAMES},
    "grpo-own-kl": Case(_config("grpo", kl=0.5)),
}


@dataclass(frozen=True)
class Side:
    """A model with an adapter, groups of calls sampled from it, and the folder that TRL's results for it are in."""

    engine: LocalEngine
    groups: Sequence[Group]
    results: Path


def completions(groups: Sequence[Group]) -> list[Completion]:
    return [member.calls[0].completion for group in groups for member in group.members]


def shifted(groups: Sequence[Group]) -> list[Group]:
    """The same as if another policy had sampled them: with log-probabilities so far off that ratios leave the clip range both
    ways, those of tokens and those of whole completions.
    """
    rng = random.Random(5)

    def shift(member: Member) -> Member:
        call, lean = member.calls[0], rng.choice([-0.45, 0.0, 0.45])
        old_T = tuple(own + lean + rng.uniform(-0.3, 0.3) for own in call.completion.logprobs_T)
        return replace(member, calls=(replace(call, completion=replace(call.completion, logprobs_T=old_T)),))

    return [replace(group, members=tuple(map(shift, group.members))) for group in groups]


def make_engine(model_dir: Path) -> LocalEngine:
    """The model with an adapter that does something."""
    engine = LocalEngine(
        AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval(),
        AutoTokenizer.from_pretrained(model_dir),
    )
    engine.adapters.create("a", LoraOptions(4, 8.0, 0.0, "all-linear"), seed=3)
    torch.manual_seed(0)
    for name, tensor in engine.adapters.parameters("a").items():
        if "lora_B" in name:
            torch.nn.init.normal_(tensor.data, std=0.04)
    return engine


def completion(engine: LocalEngine, prompt: str, text: str, temperature: float) -> Completion:
    """``text`` as if the model with the adapter had said it."""
    ids = engine.tokenizer(text)["input_ids"]
    ended = len(ids) < LIMIT
    ids = [*ids, engine.tokenizer.eos_token_id] if ended else ids[:LIMIT]
    sampled = Sampled(engine.tokenizer(prompt)["input_ids"], ids, [None] * len(ids), temperature)
    with torch.no_grad(), engine.adapters.active("a"):
        logprobs_T = free_logprobs(engine.lm, [sampled])[0].tolist()
    return Completion(
        text,
        "stop" if ended else "length",
        tuple(sampled.prompt_ids),
        tuple(ids),
        tuple(logprobs_T),
        tuple(sampled.allowed_T),
        temperature,
    )


def make_groups(engine: LocalEngine, temperature: float) -> list[Group]:
    """One group a prompt, of calls of one module."""
    groups = []
    for g, (prompt, texts) in enumerate(GROUPS.items()):
        calls = [Call("m", 0, {}, (), completion(engine, prompt, text, temperature), {}) for text, _ in texts]
        members = [Member((call,), texts[i][1], (str(g), i)) for i, call in enumerate(calls)]
        groups.append(Group(str(g), "m", 0, tuple(members)))
    return groups


def trl_options(case: Case, temperature: float) -> dict[str, Any]:
    """The case in the words of TRL's GRPOConfig."""
    config = case.config
    return {
        "loss_type": "grpo" if config.loss == "gspo" else config.loss,
        "importance_sampling_level": "sequence" if config.loss == "gspo" else "token",
        "scale_rewards": {"std": "group", "batch": "batch", "none": "none"}[config.normalize],
        "epsilon": config.clip.low,
        "epsilon_high": config.clip.high + (config.loss == "cispo"),
        "beta": config.kl,
        "use_bias_correction_kl": False,
        "temperature": temperature,
        "max_completion_length": LIMIT,
        "num_generations": MEMBERS,
        "per_device_train_batch_size": MEMBERS * len(GROUPS) // case.parts,
        "gradient_accumulation_steps": case.parts,
    }


def write_job(path: Path, model_dir: Path, groups: Sequence[Group], cases: Mapping[str, Case]) -> None:
    """What trl_side.py reads."""
    temperature = completions(groups)[0].temperature
    old = [done.logprobs_T for done in completions(shifted(groups))]
    job = {
        "model": str(model_dir),
        "adapter": str(path.with_name("adapter")),
        "out": str(path.parent),
        "groups": [
            {
                "prompt_ids": completions([group])[0].prompt_ids_T,
                "completions": [done.ids_T for done in completions([group])],
                "rewards": group.rewards_C,
            }
            for group in groups
        ],
        "cases": {
            name: {"options": trl_options(case, temperature), "old": old if case.shifted else None}
            for name, case in cases.items()
        },
    }
    path.write_text(json.dumps(job))


def run_trl(model_dir: Path, cases: Mapping[str, Case], temperature: float, folder: Path) -> Side:
    """Has TRL take a step for each of ``cases``."""
    if not READY.exists():
        pytest.fail("TRL's environment is missing: run `make peers`")
    engine = make_engine(model_dir)
    engine.adapters.save("a", folder / "adapter")
    side = Side(engine, make_groups(engine, temperature), folder)
    assert {done.finish for done in completions(side.groups)} == {"stop", "length"}
    write_job(folder / "job.json", model_dir, side.groups, cases)
    command = [READY.with_name("bin") / "python", Path(__file__).with_name("trl_side.py"), folder / "job.json"]
    environment = os.environ | {"TRL_EXPERIMENTAL_SILENCE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return side


@pytest.fixture(scope="module")
def tiny(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Side:
    return run_trl(tiny_model_dir, TINY, 0.7, tmp_path_factory.mktemp("trl-tiny"))


@pytest.fixture(scope="module")
def real(real_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Side:
    return run_trl(real_model_dir, REAL, 1.0, tmp_path_factory.mktemp("trl-real"))


def our_step(side: Side, case: Case) -> tuple[UpdateReport, dict[str, Tensor]]:
    """Our loss and gradient."""
    parameters = side.engine.adapters.parameters("a")
    for p in parameters.values():
        p.grad = None
    groups = shifted(side.groups) if case.shifted else side.groups
    calls = training_calls(groups, case.config, {"m": ModuleTerms("a", LIMIT)})
    report = UpdateReport()
    accumulate(side.engine, "a", calls, case.config, report)
    return report, {plain(name): p.grad.clone() for name, p in parameters.items()}


def plain(name: str) -> str:
    """A tensor's name without that of its adapter."""
    return re.sub(r"(lora_[AB])\.\w+\.", r"\1.", name)


def check(side: Side, name: str, case: Case) -> None:
    report, ours = our_step(side, case)
    theirs = {plain(key): grad for key, grad in load_file(side.results / f"{name}.safetensors").items()}
    result = json.loads((side.results / f"{name}.json").read_text())
    found = advantages([group.rewards_C for group in side.groups], case.config.normalize)
    assert result["advantages"] == pytest.approx([a for advantages_C in found for a in advantages_C], abs=1e-6)
    assert report.loss == pytest.approx(result["loss"], rel=TOLERANCE, abs=1e-6)
    assert (report.clipped > 0) == case.shifted
    assert ours.keys() == theirs.keys()
    error = torch.stack([(ours[key] - grad).norm() for key, grad in theirs.items()])
    norm = torch.stack([grad.norm() for grad in theirs.values()])
    assert error.norm() / norm.norm() < TOLERANCE
    assert norm.min() > 0 and (error / norm).max() < 10 * TOLERANCE, "every tensor's"


@pytest.mark.parametrize("name", TINY)
def test_a_random_models_step_equals_trls(tiny: Side, name: str) -> None:
    check(tiny, name, TINY[name])


@pytest.mark.parametrize("name", REAL)
def test_the_real_models_step_equals_trls(real: Side, name: str) -> None:
    check(real, name, REAL[name])
