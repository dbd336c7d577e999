"""mmc's side of grpo_step.py: one step of its own training loop on the same work; prints one JSON line.

python mmc_side.py MODEL_DIR EXAMPLES ROLLOUTS NEW_TOKENS DTYPE
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import work

from mmc.data import Example
from mmc.engine import open_engines
from mmc.mmgrpo.train import TrainingJob, train
from mmc.program.graph import Program
from mmc.spec import load
from mmc.spec.model import MmGrpo

SPEC = """\
mmc: 1
name: step
models: {{policy: {{type: local, dtype: {dtype}, source: "path:{folder}"}}}}
modules:
  classify: {{model: policy, template: classify.j2, inputs: {{text: str}}, outputs: {{intent: str}}, max_tokens: {tokens}}}
program: {{inputs: {{text: str}}, steps: [{{call: classify}}], outputs: {{intent: "{{{{ classify.intent }}}}"}}}}
metric: {{type: python, function: "mmc_side:score"}}
"""


def score(outputs: Mapping[str, Any], example: Mapping[str, Any]) -> float:
    return work.reward(outputs["intent"])


def main(folder: str, examples: int, rollouts: int, new_tokens: int, dtype: str) -> None:
    place = Path(tempfile.mkdtemp())
    user = work.question("{{ text }}")
    template = f"{{% system %}}\n{work.instruction()}\n{{% endsystem %}}\n{{% user %}}\n{user}\n{{% enduser %}}\n"
    (place / "classify.j2").write_text(template)
    (place / "spec.yaml").write_text(SPEC.format(dtype=dtype, folder=folder, tokens=new_tokens))
    loaded = load(place / "spec.yaml")
    program, engines = Program.build(loaded, True), open_engines(loaded)
    rows = [Example(str(i), {"text": text}) for i, text in enumerate(work.queries(examples))]
    config = MmGrpo(steps=1, examples=examples, rollouts=rollouts, learning_rate=1e-5, temperature=1.0)
    start = time.perf_counter()
    train(TrainingJob(program, engines, rows, [], config, 0, place / "training", trust=True))
    seconds = time.perf_counter() - start
    step = json.loads((place / "training/metrics.jsonl").read_text())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    found = {"seconds": seconds, "sampling": step["seconds_rollout"], "tokens": step["sampled"], "peak_gb": peak}
    print(
        json.dumps(found | {"packed": step["tokens_packed"], "plain": step["tokens_plain"], "useful": step["useful"]})
    )


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:5]), sys.argv[5])  # type: ignore[call-arg]
