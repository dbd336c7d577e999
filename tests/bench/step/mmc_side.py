"""mmc's side of grpo_step.py: steps of its own training loop on the same work; prints one JSON line.

python mmc_side.py MODEL_DIR WORK EXAMPLES ROLLOUTS NEW_TOKENS DTYPE STEPS

With one rollout an example, two examples after each other are a group: so there is something to compare.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import work

from mmc.data import Example
from mmc.engine import open_engines
from mmc.mmgrpo.ahead import InTurn
from mmc.mmgrpo.group import Group
from mmc.mmgrpo.policy import bounded, make_policy
from mmc.mmgrpo.train import TrainingJob, make_sampler, train_step
from mmc.program.graph import Program
from mmc.spec import load
from mmc.spec.model import MmGrpo

SPEC = """\
mmc: 1
name: step
models: {{policy: {{type: local, dtype: {dtype}, source: "path:{folder}"}}}}
modules:
  answer:
    {{model: policy, template: answer.j2, inputs: {{system: str, user: str}}, outputs: {{text: str}}, max_tokens: {tokens}}}
program: {{inputs: {{system: str, user: str}}, steps: [{{call: answer}}], outputs: {{text: "{{{{ answer.text }}}}"}}}}
metric: {{type: python, function: "mmc_side:score"}}
"""
TEMPLATE = "{% system %}\n{{ system }}\n{% endsystem %}\n{% user %}\n{{ user }}\n{% enduser %}\n"


def score(outputs: Mapping[str, Any], example: Mapping[str, Any]) -> float:
    return work.reward(outputs["text"])


def in_pairs(groups: Sequence[Group]) -> list[Group]:
    return [
        replace(one, members=(*one.members, *other.members))
        for one, other in zip(groups[::2], groups[1::2], strict=True)
    ]


def main(folder: str, kind: str, examples: int, rollouts: int, new_tokens: int, dtype: str, steps: int) -> None:
    place = Path(tempfile.mkdtemp())
    (place / "answer.j2").write_text(TEMPLATE)
    (place / "spec.yaml").write_text(SPEC.format(dtype=dtype, folder=folder, tokens=new_tokens))
    loaded = load(place / "spec.yaml")
    program, engines = Program.build(loaded, True), open_engines(loaded)
    conversations = work.conversations(kind, examples * steps)
    rows = [Example(str(i), {"system": system, "user": user}) for i, (system, user) in enumerate(conversations)]
    config = MmGrpo(steps=steps, examples=examples, learning_rate=1e-5, temperature=1.0)
    config = config.model_copy(update={"rollouts": rollouts})  # a spec must have at least two
    job = TrainingJob(program, engines, rows, [], config, 0, place, trust=True)
    policy = make_policy(program, engines, config, "step", 0, {})
    job = replace(job, config=bounded(config, policy, place))
    sampler = make_sampler(job, program.with_adapters(policy.names), policy)
    if rollouts == 1:
        alone = sampler.group
        sampler = replace(sampler, group=lambda runs: in_pairs(alone(runs)))
    found: dict[str, Any] = {"steps": []}
    position = 0
    for step in range(steps):
        start = time.perf_counter()
        report, position = train_step(job, InTurn(sampler), policy, step, position)
        seconds = time.perf_counter() - start
        found["steps"].append(
            {"seconds": seconds, "sampling": report.seconds_rollout, "tokens": report.sampled}
            | {"packed": report.tokens_packed, "plain": report.tokens_plain, "useful": report.useful}
        )
    found["peak_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    if torch.cuda.is_available():
        found["peak_gb"] = torch.cuda.max_memory_allocated() / 2**30
    found["forest_tokens"] = job.config.forest_tokens
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:3], *map(int, sys.argv[3:6]), sys.argv[6], int(sys.argv[7]))  # type: ignore[call-arg]
