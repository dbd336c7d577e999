"""A training step against plain loops over one unpadded sequence at a time: the loss, and every LoRA tensor's gradient.

The runs are really sampled, by three kinds of models, from a program that calls its modules as often as their outputs
say.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from mmc.mmgrpo.ahead import InTurn
from mmc.mmgrpo.group import Group
from mmc.mmgrpo.report import StepReport
from mmc.mmgrpo.train import TrainingJob, make_sampler, train_step
from mmc.mmgrpo.update import UpdateReport
from mmc.program.trajectory import Trajectory
from mmc.spec.model import MmGrpo
from mmc.trie import parts

from .lab import EXAMPLES, SPEC, TERMS, WINDOW, Lab, Tensors, gradients, model_config, settings_of
from .plain import Result, Scores, Terms, calls_of, groups_of, plain_loss, sampled_with

ARCHITECTURES = ["llama", "qwen3", "gemma3"]
LOSSES = ["grpo", "dr_grpo", "dapo", "gspo", "cispo"]
AWAY = 0.03
"""Adapters that moved so far since they sampled meet the bounds of clipping."""
TOLERANCE = 1e-4
"""Of the norm of the tensor itself; what is found is below 1e-5."""

MakeLab = Callable[..., Lab]


@pytest.fixture(scope="module")
def lab(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> MakeLab:
    """(architecture, adapters) -> its lab, made once."""

    @cache
    def make(architecture: str, adapters: str = "module") -> Lab:
        config, folder = settings_of(adapters=adapters), tmp_path_factory.mktemp(architecture)
        return Lab.make(folder, tiny_model_dir, architecture, config).sampled(config)

    return make


def check(ours: tuple[UpdateReport, Tensors], expected: tuple[Result, Tensors]) -> None:
    """The same loss, the same count of clipped tokens, and the same gradient in each tensor by itself."""
    report, found = ours
    result, wanted = expected
    assert report.loss == pytest.approx(result.loss.item(), rel=TOLERANCE)
    assert report.clipped == result.above + result.below
    assert found.keys() == wanted.keys()
    for name, tensors in wanted.items():
        assert found[name].keys() == tensors.keys() and len(tensors) == 2 * 7 * 2, (
            "A and B of 7 linear maps of 2 layers"
        )
        for key, gradient in tensors.items():
            assert gradient.norm() > 0
            assert (found[name][key] - gradient).norm() / gradient.norm() < TOLERANCE, (name, key)


# --- what the runs are like ---


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_runs_hold_all_that_is_hard(lab: MakeLab, architecture: str) -> None:
    one = lab(architecture)
    groups = groups_of(one.runs, settings_of())
    calls = calls_of(one.runs)
    assert len({len(group) for group in groups}) > 2, "ragged groups"
    assert {run.ending for run in one.runs} >= {"done", "cut", "limit"}
    assert len({reward for group in groups for _, reward in group}) >= 4
    useful = [group for group in groups if len({reward for _, reward in group}) > 1]
    assert {group[0][0][0].module for group in useful} == set(TERMS) and len(useful) < len(groups)
    for module in TERMS:
        lengths = {len(call.completion.ids_T) for key, call in calls.items() if key.module == module}
        assert len(lengths) > 1, "ragged completions"
    sets = [allowed for call in calls.values() for allowed in call.completion.allowed_T]
    assert {None, 1, 2} < {None if allowed is None else min(len(allowed), 3) for allowed in sets}
    assert min(len(call.completion.prompt_ids_T) + len(call.completion.ids_T) for call in calls.values()) > WINDOW - 2
    assert all(one.base[key] for key in calls)


def test_the_window_hides_something(lab: MakeLab) -> None:
    one = lab("gemma3")
    wide = AutoModelForCausalLM.from_config(model_config("gemma3", one.plain.config.vocab_size, window=512)).eval()
    wide.load_state_dict(one.plain.state_dict())
    wide.set_attn_implementation("eager")
    assert sorted(one.plain.config.layer_types) == ["full_attention", "sliding_attention"]
    for call in calls_of(one.runs).values():
        done = call.completion
        row = torch.tensor([[*done.prompt_ids_T, *done.ids_T]])
        with torch.no_grad():
            difference = (one.plain(input_ids=row).logits - wide(input_ids=row).logits)[0].norm(dim=-1)
        assert difference[:WINDOW].max() < 1e-3 and (difference[WINDOW:] > 1e-2).all()


# --- loss and gradients ---


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_policy_that_moved_has_the_loss_and_gradients_of_plain_loops(
    lab: MakeLab, architecture: str, loss: str
) -> None:
    one, config = lab(architecture), settings_of(loss)
    result, wanted = one.plain_step(config, AWAY)
    assert result.above + result.below > 0, "clipping is active"
    check(one.step(config, one.calls(config), AWAY), (result, wanted))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_policy_that_just_sampled_has_the_loss_and_gradients_of_plain_loops(lab: MakeLab, architecture: str) -> None:
    one, config = lab(architecture), settings_of()
    report, found = one.step(config, one.calls(config), 0.0)
    check((report, found), one.plain_step(config, 0.0))
    assert report.clipped == 0 and report.drift < 1e-4
    _, now = one.plain_at(0.0)
    for key, call in calls_of(one.runs).items():
        assert [value.item() for value in now[key]] == pytest.approx(sampled_with(call.completion), abs=1e-4)


@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
def test_an_adapter_that_modules_share_gets_the_gradient_of_all_their_calls(lab: MakeLab, architecture: str) -> None:
    one, config = lab(architecture, "shared"), settings_of(adapters="shared")
    assert len(one.policy.adapters) == 1
    check(one.step(config, one.calls(config), AWAY), one.plain_step(config, AWAY))


BY_RUN = [("trajectory", loss) for loss in LOSSES] + [("merged", loss) for loss in ("grpo", "dr_grpo", "gspo")]


@pytest.mark.parametrize(("by", "loss"), BY_RUN)
def test_whole_runs_may_count_the_same(lab: MakeLab, by: str, loss: str) -> None:
    one, config = lab("qwen3"), settings_of(loss, grouping={"by": by})
    check(one.step(config, one.calls(config), AWAY), one.plain_step(config, AWAY))


def test_a_module_may_weigh_more_in_the_loss(lab: MakeLab) -> None:
    one, config = lab("qwen3"), settings_of()
    loaded = one.program.loaded
    heavy = loaded.reparsed(loaded.text.replace("max_tokens: 8, train: true", "max_tokens: 8, train: {weight: 2.5}"))
    calls = replace(one, program=replace(one.program, loaded=heavy)).calls(config)
    check(one.step(config, calls, AWAY), one.plain_step(config, AWAY, TERMS | {"pick": Terms(8, 2.5)}))


@pytest.mark.parametrize(("architecture", "level"), [("llama", "token"), ("gemma3", "sequence")])
def test_calls_that_somebody_else_sampled_are_corrected(lab: MakeLab, architecture: str, level: str) -> None:
    """Every second run is taken for another's: its sampler is not the policy with which the step began, at AWAY."""
    one, config = lab(architecture), settings_of(importance={"level": level, "cap": 1.1})
    foreign = [
        replace(run, calls=tuple(replace(c, completion=replace(c.completion, exact=False)) for c in run.calls))
        if run.rollout % 2
        else run
        for run in one.runs
    ]
    mixed = replace(one, runs=foreign)
    calls = mixed.calls(config)
    check(one.step(config, calls, AWAY), mixed.plain_step(config, AWAY, began=AWAY))
    result, wanted = mixed.plain_step(config, 2 * AWAY, began=AWAY)
    assert 0 < result.capped < result.corrected and result.above and result.below
    check(one.step(config, calls, 2 * AWAY, first=False), (result, wanted))


# --- steps ---


@settings(max_examples=6)
@given(budget=st.integers(30, 120), loss=st.sampled_from(LOSSES), worth=st.sampled_from([1, 4, 64]))
@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
def test_small_forests_give_the_gradient_of_one_forest(
    lab: MakeLab, architecture: str, budget: int, loss: str, worth: int
) -> None:
    one = lab(architecture)
    reports, found = [], []
    for tokens in (10**6, budget):
        config = settings_of(loss, forest_tokens=tokens)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(parts, "WORTH", worth)
            report, tensors = one.step(config, one.calls(config), AWAY)
        reports.append(report)
        found.append(tensors)
    assert (reports[1].packed == reports[0].packed) == (worth == 1), (
        "short beginnings are computed in each, others once"
    )
    assert reports[1].loss == pytest.approx(reports[0].loss, rel=TOLERANCE)
    for name, tensors in found[0].items():
        for key, gradient in tensors.items():
            assert (found[1][name][key] - gradient).norm() / gradient.norm() < TOLERANCE, (name, key)


@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
def test_a_step_of_two_passes_moves_the_adapters_as_plain_adamw_does(
    architecture: str, tiny_model_dir: Path, tmp_path: Path
) -> None:
    """From sampling on, as the loop makes it; one module has a weight and a learning rate of its own.

    AdamW moves an element by about the learning rate however small its gradient is, so one near 0 may go the other way
    for a difference in the last bit, and which do so depends on the number of threads. Hence norms over a whole adapter: of
    the difference against the movement.
    """
    spec = SPEC.replace("max_tokens: 8, train: true", "max_tokens: 8, train: {weight: 2.5, learning_rate: 0.002}")
    config = settings_of(kl=0.0, learning_rate=0.01, warmup=4, max_grad_norm=0.1, inner_epochs=2)
    one = Lab.make(tmp_path, tiny_model_dir, architecture, config, spec)
    report, runs = one_step(one, config, tmp_path)
    one = replace(one, runs=runs)
    spreads = [len({reward for _, reward in group}) > 1 for group in groups_of(runs, config)]
    assert any(spreads) and not all(spreads), "groups without spread teach nothing but count in the means"

    leaves = {name: {k: t.clone().requires_grad_() for k, t in found.items()} for name, found in one.start.items()}
    rates = dict.fromkeys(leaves, 0.005) | {one.policy.names["pick"]: 0.001}  # half way through the warm-up
    groups = [{"params": list(found.values()), "lr": rates[name]} for name, found in leaves.items()]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.99), weight_decay=0.0)
    clipped = 0
    for _ in range(2):
        scores = Scores(one.plain_scores(leaves), one.base)
        result = plain_loss(runs, config, TERMS | {"pick": Terms(8, 2.5)}, scores)
        clipped += result.above + result.below
        found = gradients(result.loss, leaves)
        norm = sum(g.square().sum().item() for tensors in found.values() for g in tensors.values()) ** 0.5
        assert norm > 0.1, "the gradient is cut"
        for name, tensors in leaves.items():
            for key, tensor in tensors.items():
                tensor.grad = found[name][key] * 0.1 / norm
        optimizer.step()

    assert clipped > 0 and report.clipped == pytest.approx(clipped / report.tokens / 2)
    assert report.loss == pytest.approx(result.loss.item(), rel=1e-3)
    assert report.grad_norm == pytest.approx(norm, rel=1e-3)
    for name, tensors in leaves.items():
        moved = [(tensor - one.start[name][key]).norm() for key, tensor in tensors.items()]
        apart = [(one.tensors[name][key] - tensor).norm() for key, tensor in tensors.items()]
        assert min(moved) > 0
        assert torch.stack(apart).norm() / torch.stack(moved).norm() < 2e-4, name


def one_step(one: Lab, config: MmGrpo, folder: Path) -> tuple[StepReport, list[Trajectory]]:
    """Makes the second step of a training; its report and the runs it was made from."""
    job = TrainingJob(one.program, {"policy": one.engine}, EXAMPLES, [], config, 7, folder)
    sampler = make_sampler(job, one.program, one.policy)
    runs: list[Trajectory] = []

    def group(found: Sequence[Trajectory]) -> list[Group]:
        runs[:] = found
        return sampler.group(found)

    report, _ = train_step(job, InTurn(replace(sampler, group=group)), one.policy, 1, 0)
    return report, runs
