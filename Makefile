# Every target takes VENV=dir (default .venv) and PYTHON=python3 (the interpreter the venv is made from).
VENV ?= .venv
PYTHON ?= python3
SEED ?= 1

BIN := $(abspath $(VENV))/bin
# GOMP_SPINCOUNT: threads that soon sleep when they wait are as fast on idle cores, and ten times faster on busy ones.
RUN := PATH="$(BIN):$$PATH" HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false GOMP_SPINCOUNT=3000
# The stamp's name changes with this folder, what is installed and how, so a second `make setup` is instant.
STAMP := $(BIN)/.nemoalign-$(shell (pwd; cat pyproject.toml constraints.txt) | cksum | tr ' ' -)
# Tests are many small models: one thread each and two at a time are faster than two threads that wait for one another.
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1
AT_ONCE := -n auto --maxprocesses 4 --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help setup check test soak quickstart preference ppo completions flags format lint types layers bench clean

help:  ## this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1\t\2/' | expand -t 20
	@echo "  VENV=dir names the virtual environment (now $(VENV)), PYTHON=python3 what it is made from."

setup: $(STAMP)  ## make the virtual environment and install nemoalign with constraints.txt

$(STAMP):
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	rm -f $(BIN)/.nemoalign-*
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,gguf]'
	touch $@

check: lint types layers  ## ruff, pyright, import-linter, the rules of the house, fresh flags and completions
	$(RUN) $(ONE_THREAD) python -m pytest tests/test_project.py tests/cli

test: setup  ## every test, in one go
	$(RUN) $(ONE_THREAD) python -m pytest $(AT_ONCE)

soak: setup  ## the crash matrix (real runs killed, stopped, damaged, without room; SEED=n chooses the moments), and every kind of ppo learns
	$(RUN) $(ONE_THREAD) python -m tests.soak.learning
	$(RUN) $(ONE_THREAD) python -m tests.soak.matrix --seed $(SEED)

quickstart: setup  ## a real model: convert, inspect, fine-tune, export, ask (downloads 98 MB once)
	@$(RUN) bash examples/quickstart/quickstart.sh

preference: setup  ## the same model learns from real pairs (dpo) and labelled answers (kto), held-out curves
	@$(RUN) bash examples/preference/preference.sh

ppo: setup  ## the same model learns from rewards for its own answers (grpo, a Python function), held-out prompts
	@$(RUN) bash examples/ppo/ppo.sh

completions: setup  ## rewrite completions/ for bash, zsh and fish
	$(RUN) python -m nemoalign.cli.completion completions

flags: setup  ## rewrite the golden list of flags
	$(RUN) python -m nemoalign.cli.flags tests/cli/flags.golden

format: setup  ## let ruff format and repair
	$(RUN) ruff format
	$(RUN) ruff check --fix

lint: setup  ## ruff, without changing anything
	$(RUN) ruff check
	$(RUN) ruff format --check

types: setup  ## pyright
	$(RUN) pyright --pythonpath $(BIN)/python

layers: setup  ## import-linter: rooms import one way
	$(RUN) lint-imports

bench: setup  ## speed of sft, dpo, kto, ppo, generation, convert and export beside their peers (installs TRL in a second environment)
	$(RUN) bash benchmarks/bench.sh "$(PYTHON)"

clean:  ## remove what tests and the quickstart made; the virtual environment and downloads stay
	rm -rf .pytest_cache .ruff_cache .hypothesis .import_linter_cache .cache/quickstart .cache/preference .cache/ppo .cache/bench build *.egg-info
	find nemoalign tests benchmarks examples -name __pycache__ -type d -prune -exec rm -rf {} +
