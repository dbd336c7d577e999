"""Every shipped spec, end to end at toy size on a tiny random model."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from mmc.compile import CompileJob, compile_spec
from mmc.program.graph import Program
from mmc.spec import load

SPECS = Path(__file__).parents[2] / "specs"
TOY = {
    "train.limit": 6,
    "dev.limit": 4,
    "test.limit": 4,
    "prompts": "{trials: 1, demos: 1, examples: 2, bootstrap: 2}",
    "weights.steps": 1,
    "weights.examples": 2,
    "weights.rollouts": 2,
    "weights.evaluate_every": 0,
}


def toy(path: Path, model: Path) -> list[str]:
    """Overrides that make a spec small."""
    spec = load(path).spec
    found = [f"models.{name}.source=path:{model}" for name in spec.models]
    found += [f"data.{key}={value}" for key, value in TOY.items() if key.endswith("limit")]
    found += [f"compile.{key}={value}" for key, value in TOY.items() if not key.endswith("limit")]
    if "distill" in spec.compile.strategy:
        # A random model's texts are no text; its own tokens can be learned all the same.
        found += ["compile.distill={examples: 2, rollouts: 2, threshold: 0.0, epochs: 1}"]
    # What is constrained ends by itself.
    found += [f"modules.{name}.max_tokens=6" for name, module in spec.modules.items() if not module.constrain]
    return found


@pytest.mark.parametrize("name", sorted(path.stem for path in SPECS.glob("*.yaml")))
def test_a_shipped_spec_compiles_and_its_build_runs(name: str, tmp_path: Path, tiny_model_dir: Path) -> None:
    path = SPECS / f"{name}.yaml"
    if "MMC_DATA" in path.read_text() and "MMC_DATA" not in os.environ:
        pytest.skip("MMC_DATA is not set")
    loaded = load(path, toy(path, tiny_model_dir))
    result = compile_spec(CompileJob(loaded, tmp_path / "build", tmp_path / "runs"))
    assert [s.stage for s in result.stages] == ["start", *loaded.spec.compile.strategy]
    manifest = json.loads((result.build / "manifest.json").read_text())
    assert all(0 <= stage["score"] <= 1 for stage in manifest["stages"])
    Program.build(load(result.build))
