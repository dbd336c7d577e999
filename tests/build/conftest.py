"""A compiled program for those who look at what a compile leaves behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmc.compile import CompileJob, compile_spec
from mmc.spec import load
from tests.compile.conftest import SPEC, write_program


@pytest.fixture(scope="session")
def build(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Path:
    """A compiled program whose two modules have adapters of their own."""
    folder = tmp_path_factory.mktemp("exported")
    write_program(folder, tiny_model_dir)
    text = SPEC.replace("SOURCE", str(tiny_model_dir)).replace("strategy: [prompts, weights]", "strategy: [weights]")
    (folder / "spec.yaml").write_text(text.replace("steps: 4", "steps: 2").replace("0.01", "0.1, adapters: module"))
    return compile_spec(CompileJob(load(folder / "spec.yaml"), folder / "build", folder / "runs")).build
