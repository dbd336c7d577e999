"""mmc's side of runner.py: two modules over a server that answers at once; prints one JSON line.

python mmc_runner.py ADDRESS COUNT openai|litellm
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from pathlib import Path

from mmc.data import Example
from mmc.engine import open_engines
from mmc.program.evaluate import evaluate
from mmc.program.graph import Program
from mmc.program.run import RunSettings
from mmc.spec import load

SPEC = """\
mmc: 1
name: colours
models: {{big: {{type: {kind}, model: {model}, api_base: "{address}", concurrency: 32, cache: false}}}}
modules:
  summarize: {{model: big, template: summarize.j2, inputs: {{text: str}}, outputs: {{summary: str}}, train: false}}
  decide: {{model: big, template: decide.j2, inputs: {{text: str, summary: str}}, outputs: {{colour: str}}, train: false}}
program:
  inputs: {{text: str}}
  steps: [{{call: summarize}}, {{call: decide, with: {{summary: "{{{{ summarize.summary }}}}"}}}}]
  outputs: {{colour: "{{{{ 'blue' if decide.colour else '' }}}}"}}
metric: {{type: exact, predicted: colour, gold: colour}}
"""
SYSTEM = "{% system %}Your input fields are: TEXTS. Your output field is: FIELD.{% endsystem %}"
TEMPLATES = {
    "summarize.j2": SYSTEM + "{% user %}text: {{ text }}\nRespond with summary.{% enduser %}",
    "decide.j2": SYSTEM + "{% user %}text: {{ text }}\nsummary: {{ summary }}\nRespond with colour.{% enduser %}",
}


def main(address: str, count: int, kind: str) -> None:
    folder = Path(tempfile.mkdtemp())
    model = {"openai": "stub", "litellm": "openai/stub"}[kind]
    (folder / "spec.yaml").write_text(SPEC.format(address=address, kind=kind, model=model))
    for name, text in TEMPLATES.items():
        (folder / name).write_text(text)
    program = Program.build(load(folder / "spec.yaml"))
    engines = open_engines(program.loaded)
    rows = [Example(str(i), {"text": f"Example number {i}: what colour?", "colour": "blue"}) for i in range(count)]
    evaluate(program, engines, rows[:1], RunSettings("warm", 0, 0, 0.0))
    start, cpu = time.perf_counter(), time.process_time()
    found = evaluate(program, engines, rows, RunSettings("eval", 0, 0, 0.0), traces=False)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    print(json.dumps({"seconds": seconds, "cpu": cpu, "score": found.interval.mean, "memory_mib": memory}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
