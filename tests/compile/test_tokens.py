"""One renderer and one tokenizer: search, training, scoring and the finished build send a module the same tokens."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from mmc.compile import CompileJob, compile_spec
from mmc.data import load_split
from mmc.engine import open_engines
from mmc.engine.local import LocalEngine
from mmc.program.evaluate import evaluate
from mmc.program.graph import Program
from mmc.program.run import RunSettings
from mmc.spec import load

Prompts = dict[tuple[str, str], set[tuple[int, ...]]]
"""(stage of the request's key, its user message) -> the token ids it was sent as."""


def test_search_training_scoring_and_the_build_send_the_same_tokens(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: Prompts = defaultdict(set)
    real = LocalEngine.complete

    async def noted(engine: LocalEngine, request: Any) -> Any:
        done = await real(engine, request)
        text = "\n".join(f"{m.role}: {m.content}" for m in request.messages)
        seen[str(request.key[0]), text].add(done.prompt_ids_T)
        return done

    monkeypatch.setattr(LocalEngine, "complete", noted)
    # Everything runs on the same few examples, and the prompts stay as they are, so that prompts can be equal.
    same = [f"data.{split}={{file: rows.jsonl, part: [0.0, 0.2]}}" for split in ("train", "dev", "test")]
    spec = load(folder / "spec.yaml", [*same, "modules.query.candidates={}", "compile.prompts.demos=0"])
    result = compile_spec(CompileJob(spec, folder / "build", folder / "runs"))
    served = Program.build(load(result.build))
    evaluate(served, open_engines(served.loaded), load_split(served.loaded, "test"), RunSettings("build", 0, 0, 0.0))
    stages = {stage for stage, _ in seen}
    assert stages >= {"prompts", "weights", "eval", "build"}, stages
    assert all(len(ids) == 1 for ids in seen.values())
    texts = {stage: {text for own, text in seen if own == stage} for stage in stages}
    first_calls = {text for text in texts["build"] if "Write." in text}
    assert len(first_calls) == 4
    for stage in ("prompts", "weights", "eval"):
        assert first_calls <= texts[stage], stage
    for text in set().union(*texts.values()):
        assert len(set().union(*(seen[stage, text] for stage in stages if (stage, text) in seen))) == 1, text
