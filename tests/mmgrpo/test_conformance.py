"""Mistakes seen in other trainers of LM programs, each with a test that keeps it out of this one."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from typing import Any

import pytest
import torch

from mmc.compile import CompileJob, compile_spec
from mmc.data import Example
from mmc.engine import open_engines
from mmc.engine.adapters import LoraOptions
from mmc.engine.base import Engine
from mmc.engine.local import LocalEngine
from mmc.errors import InvalidError, UsageError
from mmc.mmgrpo.distill import DistillJob, distill
from mmc.mmgrpo.group import Group, Rewards, form_groups
from mmc.mmgrpo.rollout import Rollouts, Sampler
from mmc.mmgrpo.train import TrainingJob, TrainingResult, train
from mmc.mmgrpo.update import ModuleTerms, TrainingCall, UpdateReport, accumulate, training_calls, update
from mmc.program.evaluate import evaluate
from mmc.program.graph import Program
from mmc.program.run import RunSettings, run_all
from mmc.program.trajectory import Call, Trajectory
from mmc.prompt import Template, demo_source, demos_source
from mmc.spec import load
from mmc.spec.model import Distill, Grouping, Keys, MmGrpo
from mmc.trie.attention import ATTENTION
from mmc.trie.decode import Stream
from mmc.trie.logprobs import Sampled, free_logprobs

from .lab import open_engine

ONE_MODEL = 'models: {policy: {type: local, source: "path:nowhere"}}'
TWO_MODELS = 'models: {policy: {type: local, source: "path:nowhere"}, judge: {type: local, source: "path:nowhere"}}'
THINK = "  think: {model: policy, template: think.j2, inputs: {q: str}, outputs: {t: str}, max_tokens: 3}\n"
HEAD = f"mmc: 1\nname: conformance\n{ONE_MODEL}\nmodules:\n{THINK}"
REPEATED = """    - {repeat: 3, until: "{{ think.t < '~' }}", steps: [{call: think}]}\n"""
THREE = (
    HEAD
    + """\
  plan:
    {model: policy, template: plan.j2, inputs: {q: str, t: str}, outputs: {p: {enum: [h, mm, bbbbbb]}},
     constrain: true, max_tokens: 4}
  answer:
    {model: policy, template: answer.j2, inputs: {q: str, p: str}, format: sections,
     outputs: {k: {enum: [n, ll, uuuuuuuuuuuuuuuu]}, b: bool}, constrain: true, max_tokens: 12}
program:
  inputs: {q: str}
  steps:
    - call: think
    - {call: plan, with: {t: "{{ think.t }}"}}
    - {call: answer, with: {p: "{{ plan.p }}"}}
  outputs: {k: "{{ answer.k }}"}
metric: {type: exact, predicted: k, gold: gold}
compile: {weights: {}, distill: {}}
"""
)
"""Runs end in `plan` when it begins a long option, in `answer` with nothing or half of it read, or are done."""
LOOP = (
    HEAD
    + """\
  pick:
    {model: policy, template: plan.j2, inputs: {q: str, t: str}, outputs: {a: {enum: [red, green, blue]}}, constrain: true}
program:
  inputs: {q: str}
  steps:
REPEATED    - {call: pick, with: {t: "{{ think.t }}"}}
  outputs: {a: "{{ pick.a }}"}
metric: {type: exact, predicted: a, gold: colour}
""".replace("REPEATED", REPEATED)
)
"""Every run is done, after one to three thoughts."""
COLOUR = "{type: exact, predicted: a, gold: colour}"
PARTS = {"a": "colour", "t": "text"}
TEMPLATES = {
    "think.j2": "{% slot demos %}\n{% endslot %}\n{% user %}{{ q }}{% enduser %}",
    "plan.j2": "{% system %}Plan.{% endsystem %}{% user %}{{ q }} then {{ t }}{% enduser %}",
    "answer.j2": "{% system %}Answer.{% endsystem %}{% user %}{{ q }} by {{ p }}{% enduser %}",
}
EXAMPLES = [Example(str(i), {"q": f"question {i}", "gold": "n", "colour": "green", "text": "-"}) for i in range(4)]
ROLLOUTS = 6
GREEDY = RunSettings("eval", 0, 0, 0.0)


def build(folder: Path, spec: str, trust: bool = False) -> Program:
    for name, text in TEMPLATES.items():
        (folder / name).write_text(text)
    (folder / "spec.yaml").write_text(spec)
    return Program.build(load(folder / "spec.yaml"), trust)


@pytest.fixture
def three(tmp_path: Path) -> Program:
    return build(tmp_path, THREE)


@pytest.fixture
def loop(tmp_path: Path) -> Program:
    return build(tmp_path, LOOP)


@dataclass(frozen=True)
class Step:
    """What one step of a training sampled, and what it was updated with."""

    rollouts: Rollouts
    calls: Sequence[TrainingCall]

    def groups(self, module: str) -> list[Group]:
        return [group for group in self.rollouts.groups if group.module == module]


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[Step]:
    """The steps of the trainings that a test runs."""
    found: list[Step] = []
    sampled: list[Rollouts] = []
    sample = Sampler.sample

    def watched_sample(self: Sampler, step: int, position: int) -> Rollouts:
        sampled.append(sample(self, step, position))
        return sampled[-1]

    def watched_update(engine: LocalEngine, optimizer: Any, calls: Sequence[TrainingCall], *rest: Any) -> Any:
        found.append(Step(sampled[-1], calls))
        return update(engine, optimizer, calls, *rest)

    monkeypatch.setattr(Sampler, "sample", watched_sample)
    monkeypatch.setattr("mmc.mmgrpo.policy.update", watched_update)
    return found


def trained(
    program: Program,
    engine: LocalEngine | Mapping[str, Engine],
    folder: Path,
    dev: Sequence[Example] = (),
    on_step: Callable[[Any], None] = lambda report: None,
    **settings: Any,
) -> TrainingResult:
    engines: Mapping[str, Engine] = {"policy": engine} if isinstance(engine, LocalEngine) else engine
    usual = {"steps": 2, "examples": len(EXAMPLES), "rollouts": ROLLOUTS, "learning_rate": 0.01, "lora": {"rank": 4}}
    config = MmGrpo.model_validate({key: value for key, value in (usual | settings).items() if value is not None})
    return train(TrainingJob(program, engines, EXAMPLES, dev, config, 0, folder, on_step=on_step))


def curves(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


Identity = tuple[tuple[int, ...], tuple[int, ...], tuple[float, ...]]
"""(prompt, completion, log-probabilities of its free tokens)."""


def sampled_as(call: Call) -> Identity:
    done = call.completion
    free = [allowed is None or len(allowed) > 1 for allowed in done.allowed_T]
    return done.prompt_ids_T, done.ids_T, tuple(compress(done.logprobs_T, free))


def sampled_of(call: Call) -> Sampled:
    done = call.completion
    return Sampled(done.prompt_ids_T, done.ids_T, done.allowed_T, done.temperature)


def trained_as(call: TrainingCall) -> Identity:
    return tuple(call.sampled.prompt_ids), tuple(call.sampled.ids_T), tuple(call.sampler_F)


def teaching(groups: Iterable[Group]) -> list[Call]:
    """The calls that have an advantage and a choice."""
    found = []
    for group in groups:
        mean = sum(group.rewards_C) / len(group.members) if len({*group.rewards_C}) > 1 else group.rewards_C[0]
        found += [call for m in group.members if m.reward != mean for call in m.calls if sampled_as(call)[2]]
    return found


def prompt_ids(engine: LocalEngine, *messages: tuple[str, str]) -> tuple[int, ...]:
    """The prompt of a chat of (role, text), by the tokenizer alone."""
    chat = [{"role": role, "content": text} for role, text in messages]
    text = engine.tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    return tuple(engine.tokenizer(text, add_special_tokens=False)["input_ids"])


# --- failures keep their prompt, their credit and their place ---


def test_a_failing_second_module_is_trained_with_its_own_prompt_token_for_token(
    three: Program, engine: LocalEngine, steps: list[Step], tmp_path: Path
) -> None:
    trained(three, engine, tmp_path / "t", format_reward=-1.0)
    found: Counter[str] = Counter()
    for step in steps:
        known = {trained_as(call) for call in step.calls}
        failing = [call for call in teaching(step.rollouts.groups) if call.outputs is None]
        for call in failing:
            system, text = {"plan": ("Plan.", "{q} then {t}"), "answer": ("Answer.", "{q} by {p}")}[call.module]
            user = text.format(**call.inputs).strip()
            assert call.completion.prompt_ids_T == prompt_ids(engine, ("system", system), ("user", user))
            assert sampled_as(call) in known
            found[call.module] += 1
    assert found["plan"] and found["answer"], "both fail"


@pytest.mark.parametrize(("form", "max_tokens"), [("sections", 12), ("json", 21)])
def test_a_completion_of_which_half_can_be_read_gets_half_the_credit_and_no_run_twice(
    engine: LocalEngine, steps: list[Step], tmp_path: Path, form: str, max_tokens: int
) -> None:
    spec = THREE.replace("format: sections", f"format: {form}").replace("max_tokens: 12", f"max_tokens: {max_tokens}")
    trained(build(tmp_path, spec), engine, tmp_path / "t", steps=1, rollouts=12, failure_reward=0.2, format_reward=-1.0)
    runs = steps[0].rollouts.runs
    assert sorted((t.example_id, t.rollout) for t in runs) == [(e.id, r) for e in EXAMPLES for r in range(12)]
    rewards: dict[float, set[float]] = {}
    for group in steps[0].groups("answer"):
        made = [(t.example_id, t.rollout) for t in runs if t.example_id == group.example_id and len(t.calls) == 3]
        assert [m.run for m in group.members] == made, "every run that got here, once"
        for member in group.members:
            rewards.setdefault(member.calls[0].readable, set()).add(round(member.reward, 9))
    assert rewards == {0.0: {-1.0}, 0.5: {-0.4}, 1.0: {1.0}}


def test_one_interrupted_run_leaves_the_later_modules_group_to_the_others(
    three: Program, engine: LocalEngine, steps: list[Step], tmp_path: Path
) -> None:
    trained(three, engine, tmp_path / "t", steps=1)
    known = {trained_as(call) for call in steps[0].calls}
    met = 0
    for group in steps[0].groups("answer"):
        runs = [t for t in steps[0].rollouts.runs if t.example_id == group.example_id]
        assert [m.run[1] for m in group.members] == [t.rollout for t in runs if len(t.calls) == 3]
        lessons = teaching([group])
        met += len(group.members) < ROLLOUTS and bool(lessons)
        assert all(sampled_as(call) in known for call in lessons)
    assert met, "some run ends before the module, and the others differ"


TOOLS = """
def moody(text):
    if len(text) % 2:
        raise ValueError("no luck today")
    return text
"""


def test_a_run_whose_tool_raises_is_kept_with_the_failure_reward_and_the_cause(
    engine: LocalEngine, steps: list[Step], tmp_path: Path
) -> None:
    (tmp_path / "moody_tools.py").write_text(TOOLS)
    tool = '    - {tool: moody, with: {text: "{{ think.t }}"}}\n    - {call: plan'
    spec = THREE.replace("modules:", "tools: {moody: {type: python, function: 'moody_tools:moody'}}\nmodules:", 1)
    program = build(tmp_path, spec.replace("    - {call: plan", tool), trust=True)
    trained(program, engine, tmp_path / "t", steps=1, failure_reward=-0.7)
    runs, known = steps[0].rollouts.runs, {trained_as(call) for call in steps[0].calls}
    failed = [t for t in runs if t.ending == "tool_failed"]
    assert 0 < len(failed) < len(runs) == len(EXAMPLES) * ROLLOUTS
    members = {m.run: m for group in steps[0].groups("think") for m in group.members}
    assert len(members) == len(runs)
    for run in failed:
        assert "ValueError: no luck today" in str(run.error) and "no luck today" in str(run.tools[-1].error)
        member = members[run.example_id, run.rollout]
        assert member.reward == -0.7 and member.calls[0] is run.calls[0]
    lessons = teaching(steps[0].groups("think"))
    assert any(call is run.calls[0] for run in failed for call in lessons)
    assert all(sampled_as(call) in known for call in lessons)


# --- uneven groups ---


@pytest.mark.parametrize(
    "grouping", [{}, {"uneven": "truncate"}, {"uneven": "fill"}, {"uneven": "fill", "fill": "last"}], ids=str
)
def test_runs_with_different_numbers_of_calls_train(
    loop: Program, engine: LocalEngine, steps: list[Step], tmp_path: Path, grouping: dict[str, str]
) -> None:
    trained(loop, engine, tmp_path / "t", steps=1, grouping=grouping)
    made = {(t.example_id, t.rollout): [c for c in t.calls if c.module == "think"] for t in steps[0].rollouts.runs}
    assert len({len(calls) for calls in made.values()}) > 1
    sizes = {(g.example_id, g.index): len(g.members) for g in steps[0].groups("think")}
    for (example, index), size in sizes.items():
        there = sum(run[0] == example and len(calls) > index for run, calls in made.items())
        assert size == (ROLLOUTS if grouping else there)
    longest = [max(len(c) for run, c in made.items() if run[0] == e.id) for e in EXAMPLES]
    shortest = [min(len(c) for run, c in made.items() if run[0] == e.id) for e in EXAMPLES]
    assert len(sizes) == sum(shortest if grouping == {"uneven": "truncate"} else longest)
    assert Counter(map(trained_as, steps[0].calls)) == Counter(map(sampled_as, teaching(steps[0].rollouts.groups)))


def test_fill_draws_any_of_a_runs_own_calls(loop: Program, engine: LocalEngine) -> None:
    runs = run_all(loop, {"policy": engine}, EXAMPLES, RunSettings("weights", 0, 0, 1.0), rollouts=ROLLOUTS)
    made = {(t.example_id, t.rollout): [c for c in t.calls if c.module == "think"] for t in runs}
    drawn: dict[tuple[str, int], set[int]] = {}
    for seed in range(20):
        for group in form_groups(runs, ["think"], Rewards(), Grouping(uneven="fill"), seed):
            assert sorted(m.run for m in group.members) == [(group.example_id, i) for i in range(ROLLOUTS)]
            for member in group.members:
                (place,) = [i for i, call in enumerate(made[member.run]) if call is member.calls[0]]
                if group.index < len(made[member.run]):
                    assert place == group.index
                else:
                    drawn.setdefault(member.run, set()).add(place)
    assert drawn and all(places == set(range(len(made[run]))) for run, places in drawn.items())
    assert {len(places) for places in drawn.values()} == {1, 2}


# --- what is sampled is what is trained ---


def test_every_group_with_spread_is_used_once_in_the_step_that_sampled_it(
    three: Program, engine: LocalEngine, steps: list[Step], tmp_path: Path
) -> None:
    trained(three, engine, tmp_path / "t", steps=4, learning_rate=0.03)
    assert len(steps) == 4
    for step in steps:
        assert Counter(map(trained_as, step.calls)) == Counter(map(sampled_as, teaching(step.rollouts.groups))) != {}
    assert all(line["drift"] < 1e-4 for line in curves(tmp_path / "t"))
    stale = UpdateReport()
    accumulate(engine, "t.shared", steps[0].calls, MmGrpo(), stale)
    assert stale.drift > 0.1, "older samples would be noticed"


def test_prompts_with_demonstrations_are_the_same_in_search_training_and_serving(
    tiny_model_dir: Path, steps: list[Step], tmp_path: Path
) -> None:
    build(tmp_path, THREE)
    template = Template.load(tmp_path / "think.j2")
    shown = [demo_source(template, {"q": f"shown {i}"}, f"answer {i} {{{{ q }}}}") for i in range(2)]
    (tmp_path / "think.j2").write_text(template.with_slot("demos", demos_source(shown)).source)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(dict(e.row)) + "\n" for e in EXAMPLES))
    data = "data: {train: {file: rows.jsonl}, dev: {file: rows.jsonl}, test: {file: rows.jsonl}}\n"
    weights = f"strategy: [weights], gate: false, weights: {{steps: 1, examples: 4, rollouts: {ROLLOUTS}}}"
    text = THREE.replace("nowhere", str(tiny_model_dir)).replace("weights: {}, distill: {}", weights) + data
    (tmp_path / "spec.yaml").write_text(text)
    result = compile_spec(CompileJob(load(tmp_path / "spec.yaml"), tmp_path / "build", tmp_path / "runs"))

    served = Program.build(load(result.build))
    engines = open_engines(served.loaded)
    policy = engines["policy"]
    assert isinstance(policy, LocalEngine)
    chat = [
        ("user", "shown 0"),
        ("assistant", "answer 0 {{ q }}"),
        ("user", "shown 1"),
        ("assistant", "answer 1 {{ q }}"),
    ]
    wanted = {e.id: prompt_ids(policy, *chat, ("user", e.row["q"])) for e in EXAMPLES}
    assert prompts(steps[0].rollouts.runs) == wanted
    lessons = {tuple(call.sampled.prompt_ids) for call in steps[0].calls}
    assert {call.completion.prompt_ids_T for call in teaching(steps[0].groups("think"))} <= lessons & {*wanted.values()}
    examples = [Example(str(i), e.row) for i, e in enumerate(EXAMPLES)]
    for settings in (RunSettings("prompts", 0, 0, 0.0), RunSettings("run", 0, 0, 0.0, score=False)):
        assert prompts(evaluate(served, engines, examples, settings).trajectories) == wanted


def prompts(runs: Iterable[Trajectory]) -> dict[str, tuple[int, ...]]:
    """The prompt of the first call on each example."""
    return {run.example_id: run.calls[0].completion.prompt_ids_T for run in runs}


def test_drawn_ids_are_trained_where_their_text_has_other_tokens(
    three: Program, engine: LocalEngine, steps: list[Step], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: dict[Stream, list[tuple[int, float]]] = defaultdict(list)
    take = Stream.take

    def watched(self: Stream, token: int, logprob: float, *rest: Any) -> None:
        drawn[self].append((token, logprob))
        take(self, token, logprob, *rest)

    monkeypatch.setattr(Stream, "take", watched)
    trained(three, engine, tmp_path / "t", steps=1)
    known = {(tuple(stream.prompt_ids), *zip(*tokens, strict=True)) for stream, tokens in drawn.items()}
    lessons = teaching(steps[0].groups("think"))
    assert {sampled_as(call) for call in lessons} <= known & {trained_as(call) for call in steps[0].calls}
    texts = [engine.tokenizer(call.completion.text, add_special_tokens=False)["input_ids"] for call in lessons]
    assert any(list(call.completion.ids_T[: len(ids)]) != ids for call, ids in zip(lessons, texts, strict=True))


def test_modules_with_equal_signatures_and_templates_train_apart(
    engine: LocalEngine, steps: list[Step], tmp_path: Path
) -> None:
    again = THINK.replace("think:", "again:")
    calls = LOOP.replace("repeat: 3", "repeat: 1").replace("{call: think}", "{call: think}, {call: again}")
    program = build(tmp_path, calls.replace(THINK, THINK + again))
    result = trained(program, engine, tmp_path / "t", steps=1, adapters="module")
    for name in ("think", "again"):
        groups = steps[0].groups(name)
        sizes = sorted((g.example_id, g.index, len(g.members)) for g in groups)
        assert sizes == [(e.id, 0, ROLLOUTS) for e in EXAMPLES]
        lessons = [call for call in steps[0].calls if call.adapter == f"t.{name}"]
        assert Counter(map(trained_as, lessons)) == Counter(map(sampled_as, teaching(groups))) != {}
    assert weights(result.adapters["think"]) != weights(result.adapters["again"])


def weights(folder: Path) -> bytes:
    return (folder / "adapter_model.safetensors").read_bytes()


# --- the loss ---


def test_the_gradient_is_that_of_sampled_tokens_alone(three: Program, engine: LocalEngine) -> None:
    engine.adapters.create("a", LoraOptions(4, 8.0, 0.0, "all-linear"), seed=3)
    program = three.with_adapters(dict.fromkeys(three.spec.modules, "a"))
    runs = run_all(program, {"policy": engine}, EXAMPLES, RunSettings("weights", 0, 0, 1.0), rollouts=ROLLOUTS)
    terms = {name: ModuleTerms("a", module.max_tokens) for name, module in three.spec.modules.items()}
    calls = training_calls(form_groups(runs, [*terms], Rewards(format=-1.0)), MmGrpo(), terms)
    accumulate(engine, "a", calls, MmGrpo(), UpdateReport())
    ours = torch.cat([tensor.grad.flatten() for tensor in engine.adapters.parameters("a").values()])
    sampled, with_prompts = (plain_gradient(engine, calls, prompts) for prompts in (False, True))
    assert (ours - sampled).norm() < 1e-4 * sampled.norm()
    assert (with_prompts - sampled).norm() > 0.1 * sampled.norm()


def plain_gradient(engine: LocalEngine, calls: Sequence[TrainingCall], with_prompts: bool) -> torch.Tensor:
    """Of -weight x advantage x log-probability, call by call and token by token."""
    model, total = engine.lm.model, torch.zeros(())
    model.set_attn_implementation("eager")
    with engine.adapters.active("a", train=True):
        for call in calls:
            before, ids = len(call.sampled.prompt_ids), [*call.sampled.prompt_ids, *call.sampled.ids_T]
            logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
            places = [(before + t, call.sampled.allowed_T[t]) for t in call.sampled.free_T]
            places += [(i, None) for i in range(1, before)] if with_prompts else []
            for place, allowed in places:
                row = logits[place - 1]
                if allowed is not None:
                    row = row + torch.full_like(row, -torch.inf).index_fill(0, torch.tensor(allowed).long(), 0.0)
                total = total - call.weight * call.advantage * torch.log_softmax(row, -1)[ids[place]]
        found = torch.autograd.grad(total, list(engine.adapters.parameters("a").values()))
    model.set_attn_implementation(ATTENTION)
    return torch.cat([tensor.flatten() for tensor in found])


IDLE = [
    ("weights", "{grouping: {fill: last}}", "`fill` does nothing without `uneven: fill`"),
    ("weights", "{grouping: {by: trajectory, uneven: fill}}", "`uneven` does nothing with `by: trajectory`"),
    ("weights", "{grouping: {select: 8}}", "`grouping.select` does nothing"),
    ("weights", "{teachers: [{rollouts: 2}]}", "a teacher is another `spec`, or this program"),
    ("weights", "{teachers: [{spec: other.yaml, model: policy}]}", "a teacher is another `spec`, or this program"),
    ("weights", "{full: true, lora: {rank: 2}}", "`lora` does nothing with `full: true`"),
    ("weights", "{full: true, adapters: module}", "it needs `adapters: shared`"),
    ("weights", "{floor: 0.5}", "`floor` does nothing with `schedule: constant`"),
    ("weights", "{patience: 2}", "`patience` does nothing without `evaluate_every`"),
    ("weights", "{tree: [2, 2]}", "`tree` draws 4 runs in all, but `rollouts` is 8"),
    ("weights", "{tree: [4, 2], grouping: {by: merged}}", "`grouping` does nothing with `tree`"),
    ("weights", "{tree: [4, 2], teachers: [{model: policy}]}", "`teachers` cannot join the groups of a `tree`"),
    ("weights", "{importance: {cap: 0.5}, teachers: [{model: policy}]}", "`importance.cap` below 1"),
    ("weights", "{loss: cispo, clip: {low: 0.1}}", "`clip.low` does nothing with `loss: cispo`"),
    ("weights", "{step: 5}", "unknown key 'step'. Did you mean 'steps'?"),
    ("weights", "{clip: {hi: 0.3}}", "unknown key 'hi'"),
    ("weights", "{loss: dapo, grouping: {by: merged}}", "`by: merged` does nothing with `loss: dapo`"),
    ("distill", "{rollouts: 0}", "somebody must teach"),
    ("distill", "{rollouts: 0, temperature: 0.7, teachers: [{model: policy}]}", "`temperature` does nothing"),
    ("distill", "{floor: 0.5}", "`floor` does nothing with `schedule: constant`"),
    ("distill", "{kl: 0.1}", "unknown key 'kl'"),
]


@pytest.mark.parametrize(("stage", "block", "message"), IDLE)
def test_an_option_that_does_nothing_is_an_error(tmp_path: Path, stage: str, block: str, message: str) -> None:
    (tmp_path / "spec.yaml").write_text(THREE.replace(f"{stage}: {{}}", f"{stage}: {block}"))
    with pytest.raises(InvalidError) as caught:
        load(tmp_path / "spec.yaml")
    assert message in str(caught.value) and "spec.yaml:2" in str(caught.value)


def test_a_learning_rate_of_its_own_needs_an_adapter_of_its_own(engine: LocalEngine, tmp_path: Path) -> None:
    program = build(tmp_path, LOOP.replace("max_tokens: 3", "max_tokens: 3, train: {learning_rate: 0.1}"))
    with pytest.raises(UsageError, match="'think' has a learning rate of its own but shares its adapter"):
        trained(program, engine, tmp_path / "t")


Settings = dict[str, Any]
ACTS: list[tuple[Settings, Settings]] = [
    ({}, {"learning_rate": 0.02}),
    ({}, {"warmup": 3}),
    ({}, {"schedule": "linear"}),
    ({}, {"schedule": "cosine"}),
    ({"schedule": "linear"}, {"floor": 0.5}),
    ({}, {"max_grad_norm": 1e-6}),
    ({}, {"forest_tokens": 200}),
    ({}, {"adapters": "module"}),
    ({}, {"adapters": {"one": ["think"], "two": ["plan", "answer"]}}),
    *(({}, {"lora": {"rank": 4, **change}}) for change in
      ({"rank": 2}, {"alpha": 8.0}, {"dropout": 0.5}, {"targets": ["q_proj"]}, {"dora": True}, {"rslora": True})),
    ({"lora": None}, {"full": True}),
    ({}, {"steps": 3}),
    ({}, {"examples": 2}),
    ({}, {"rollouts": 4}),
    ({}, {"temperature": 0.7}),
    ({}, {"tree": [3, 2]}),
    *(({}, {"loss": loss}) for loss in ("dr_grpo", "dapo", "cispo")),
    ({"inner_epochs": 2}, {"loss": "gspo"}),
    *(({}, {"normalize": name}) for name in ("batch", "leave_one_out", "none")),
    ({}, {"grouping": {"by": "trajectory"}}),
    ({}, {"grouping": {"by": "merged"}}),
    ({}, {"grouping": {"uneven": "truncate"}}),
    ({}, {"grouping": {"uneven": "fill"}}),
    ({"grouping": {"uneven": "fill"}, "rollouts": 12}, {"grouping": {"uneven": "fill", "fill": "last"}}),
    ({}, {"grouping": {"select": 2}}),
    ({}, {"inner_epochs": 2}),
    ({"inner_epochs": 2, "clip": {"low": 0.3}}, {"clip": {"low": 0.0}}),
    ({"inner_epochs": 2, "clip": {"high": 0.3}}, {"clip": {"high": 0.0}}),
    ({}, {"teachers": [{"model": "policy"}]}),
    ({"teachers": [{"model": "policy"}]}, {"importance": {"level": "sequence"}}),
    ({"teachers": [{"model": "policy"}]}, {"importance": {"cap": 1.0}}),
    ({}, {"kl": 1.0}),
    ({"examples": 2, "rollouts": 2}, {"resample": 2}),
    ({}, {"failure_reward": 0.5}),
    ({}, {"format_reward": -1.0}),
    ({}, {"evaluate_every": 1}),
    ({"evaluate_every": 1, "steps": 4}, {"patience": 1}),
]  # fmt: skip


def footprint(folder: Path, tiny_model_dir: Path, settings: Settings) -> object:
    """What a training left behind that no option could change by its name alone."""
    folder.mkdir()
    program = build(folder, THREE.replace("    - call: think\n", REPEATED))
    trained(program, open_engine(tiny_model_dir), folder / "t", dev=EXAMPLES, **settings)
    files = {file.parent.name: file.read_bytes() for file in sorted((folder / "t/final").rglob("*.safetensors"))}
    return files, [(line["tokens_packed"], line["dev"]) for line in curves(folder / "t")]


@pytest.fixture(scope="module")
def footprints() -> dict[str, object]:
    return {}


@pytest.mark.parametrize(("start", "change"), ACTS, ids=str)
def test_an_option_has_an_effect(
    footprints: dict[str, object], tiny_model_dir: Path, tmp_path: Path, start: Settings, change: Settings
) -> None:
    if str(start) not in footprints:
        footprints[str(start)] = footprint(tmp_path / "start", tiny_model_dir, start)
    assert footprint(tmp_path / "change", tiny_model_dir, start | change) != footprints[str(start)]


WITH_A_SERVER = {"staleness"}
"""Shown by test_ahead.py: something has to sample while this process trains."""


def test_every_option_is_shown_to_have_an_effect() -> None:
    shown = set().union(*(keys_of(MmGrpo, change) for _, change in ACTS))
    assert shown | WITH_A_SERVER == keys_of(MmGrpo) - {"algorithm"} and not shown & WITH_A_SERVER


def keys_of(block: type[Keys], given: Settings | None = None) -> set[str]:
    """All keys of a block, or those that are given, as `outer.inner`."""
    found: set[str] = set()
    for name, field in block.model_fields.items():
        kind, value = field.annotation, (given or {}).get(name)
        if given is not None and value is None:
            continue
        inner = keys_of(kind, value) if isinstance(kind, type) and issubclass(kind, Keys) else None
        found |= {name} if inner is None else {f"{name}.{key}" for key in inner}
    return found


# --- what comes out ---


def test_the_adapter_that_is_returned_was_the_best_on_dev(tiny_model_dir: Path, tmp_path: Path) -> None:
    """Dev wants what the program writes after the second of three steps."""
    parts = [f"{{name: {o}, weight: 1, metric: {{type: exact, predicted: {o}, gold: {g}}}}}" for o, g in PARTS.items()]
    spec = LOOP.replace('a: "{{ pick.a }}"', 'a: "{{ pick.a }}", t: "{{ think.t }}"')
    program = build(tmp_path, spec.replace(COLOUR, f"{{type: weighted, of: [{', '.join(parts)}]}}"))
    texts: list[list[Any]] = []
    saved: list[bytes] = []
    settings: Settings = {"steps": 3, "learning_rate": 0.02, "evaluate_every": 1}

    engine = open_engine(tiny_model_dir)

    def look(_: Any) -> None:
        now = program.with_adapters(dict.fromkeys(program.spec.modules, "look.shared"))
        texts.append([run.outputs and run.outputs["t"] for run in run_all(now, {"policy": engine}, EXAMPLES, GREEDY)])

    def keep(report: Any) -> None:
        saved.append(weights(tmp_path / f"t/step-{report.step:06d}/adapters/shared"))

    trained(program, engine, tmp_path / "look", EXAMPLES, look, **settings)
    dev = [Example(e.id, {**e.row, "colour": "-", "text": text}) for e, text in zip(EXAMPLES, texts[1], strict=True)]
    engine = open_engine(tiny_model_dir)
    result = trained(program, engine, tmp_path / "t", dev, keep, **settings)
    scores = [line["dev"] for line in curves(tmp_path / "t")]
    assert scores[1] == 1.0 > max(scores[0], scores[2])
    assert weights(result.adapters["think"]) == saved[1] != saved[2]
    assert evaluate(result.program, {"policy": engine}, dev, GREEDY).interval.mean == 1.0


def test_a_batch_that_divides_the_data_makes_no_batch_more(
    loop: Program, engine: LocalEngine, steps: list[Step], tmp_path: Path
) -> None:
    trained(loop, engine, tmp_path / "t", steps=4, examples=2, rollouts=2)
    batches = [sorted({run.example_id for run in step.rollouts.runs}) for step in steps]
    assert [len(batch) for batch in batches] == [2] * 4 and [len(step.rollouts.runs) for step in steps] == [4] * 4
    for epoch in (batches[:2], batches[2:]):
        assert sorted(name for batch in epoch for name in batch) == [e.id for e in EXAMPLES]
    config = Distill(threshold=0.0, per_example=1, batch=2, epochs=1, rollouts=2)
    result = distill(DistillJob(loop, {"policy": engine}, EXAMPLES, config, 0, tmp_path / "d"))
    assert result.covered == 4 and len(curves(tmp_path / "d")) == 2


@pytest.mark.parametrize(("failure", "form"), [(0.5, 0.0), (0.0, -1.0), (-0.5, 0.0), (-1.0, -0.25)])
def test_rewards_of_zero_and_below_count_as_they_are(
    three: Program, engine: LocalEngine, steps: list[Step], tmp_path: Path, failure: float, form: float
) -> None:
    trained(three, engine, tmp_path / "t", steps=1, failure_reward=failure, format_reward=form)
    runs = {(run.example_id, run.rollout): run for run in steps[0].rollouts.runs}
    found = Counter()
    for group in steps[0].groups("think") + steps[0].groups("plan"):
        for member in group.members:
            run, failed = runs[member.run], member.calls[0].outputs is None
            assert member.reward == (form if failed else run.reward if run.ending == "done" else failure)
            found[failed, run.ending] += 1
    assert found[True, "cut"] and found[False, "cut"] and found[False, "done"]
    known = {trained_as(call) for call in steps[0].calls}
    assert {sampled_as(call) for call in teaching(steps[0].rollouts.groups)} == known


# --- what others refuse ---


class Interrupted(Exception):
    pass


def test_two_models_adapters_by_module_demonstrations_and_a_resume_work_together(
    tiny_model_dir: Path, steps: list[Step], tmp_path: Path
) -> None:
    spec = THREE.replace(ONE_MODEL, TWO_MODELS)
    spec = spec.replace("{model: policy, template: answer.j2,", "{model: judge, train: false, template: answer.j2,")
    program = build(tmp_path, spec)
    shown = demo_source(program.templates["think"], {"q": "shown"}, "so")
    program = program.with_templates({"think": program.templates["think"].with_slot("demos", demos_source([shown]))})
    judge = open_engine(tiny_model_dir)
    judge.lm.model.get_input_embeddings().weight.data *= 2
    before = {name: tensor.clone() for name, tensor in judge.lm.model.state_dict().items()}

    def interrupt(report: Any) -> None:
        if report.step == 2:
            raise Interrupted

    def go(folder: str, on_step: Callable[[Any], None] = lambda report: None) -> TrainingResult:
        engines = {"policy": open_engine(tiny_model_dir), "judge": judge}
        return trained(program, engines, tmp_path / folder, on_step=on_step, steps=4, examples=3, adapters="module")

    whole = go("whole/t")
    with pytest.raises(Interrupted):
        go("parts/t", interrupt)
    assert [line["step"] for line in curves(tmp_path / "parts/t")] == [1, 2]
    resumed = go("parts/t")
    assert {module: folder.name for module, folder in whole.adapters.items()} == {"think": "think", "plan": "plan"}
    for module, folder in whole.adapters.items():
        assert weights(folder) == weights(resumed.adapters[module])
    assert weights(whole.adapters["think"]) != weights(whole.adapters["plan"])
    assert {group.module for step in steps for group in step.rollouts.groups} == {"think", "plan"}
    judged = [call for step in steps for run in step.rollouts.runs for call in run.calls if call.module == "answer"]
    with torch.no_grad():
        logprobs_F, _, _ = free_logprobs(judge.lm, [sampled_of(call) for call in judged])
    assert logprobs_F.tolist() == pytest.approx([value for call in judged for value in sampled_as(call)[2]], abs=1e-4)
    after = judge.lm.model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


WAYS = {
    "branches at once": "[{parallel: [[{call: think}], [{call: again}]]}]",
    "ways that part": """[{call: think}, {if: "{{ think.t < '~' }}", steps: [{call: think}], else: [{call: again}]}]""",
}


@pytest.mark.parametrize("way", list(WAYS))
def test_runs_that_wait_for_different_models_do_not_wait_for_each_other(
    tiny_model_dir: Path, tmp_path: Path, way: str
) -> None:
    again = THINK.replace("think:", "again:").replace("model: policy", "model: judge")
    head = LOOP[: LOOP.index("program:")].replace(ONE_MODEL, TWO_MODELS).replace(THINK, THINK + again)
    program = build(
        tmp_path, f"{head}program: {{inputs: {{q: str}}, timeout: 120, outputs: {{a: x}}, steps: {WAYS[way]}}}"
    )
    engines = {name: open_engine(tiny_model_dir) for name in ("policy", "judge")}
    runs = run_all(program, engines, EXAMPLES, RunSettings("weights", 0, 0, 1.0), rollouts=ROLLOUTS)
    assert {run.ending for run in runs} == {"done"}
    assert {call.module for run in runs for call in run.calls[1:]} >= {"again"}
