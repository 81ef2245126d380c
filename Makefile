# Each target sets up what it needs in .venv first. Requirements: python3 (3.11 or newer), make, a package index.
#   make setup        all tools of development into .venv
#   make quickstart   train a small model, score it, export it, show what prompt-in-decoder saves
#   make test         all tests
#   make targets      tests that compile for H100 and TPU, without either; installs 5.5 GB into .venv-targets
#   make lint         formatting, lint, types, and a strict build of the documentation
#   make format       rewrite the sources as `make lint` wants them
#   make docs         build the documentation into site/
#   make wheel        build the wheel and the source archive into dist/
#   make clean        remove .venv, .venv-targets, site/, dist/ and the output of the quickstart
# Another interpreter: make PYTHON=python3.12 test

PYTHON ?= python3
VENV := .venv
TARGETS_VENV := .venv-targets
BIN := $(VENV)/bin
RUN := runs/quickstart
# The variable turns off an announcement of the theme.
MKDOCS := NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

.DEFAULT_GOAL := help
.PHONY: help setup quickstart test targets lint format docs wheel clean

help:
	@sed -n '/^#   make/s/^#   //p' Makefile

# Stamps: set-up runs once, and again when the requirements change.
$(VENV)/.core: requirements.txt pyproject.toml setup.py
	@$(PYTHON) -c 'import sys; sys.exit("error: pid_jax needs Python 3.11 or newer, this is " + sys.version.split()[0] + "; try make PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing pid_jax into $(VENV) (once; takes a few minutes)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.core requirements-dev.txt
	@echo "Installing the test and lint tools into $(VENV) (once; takes a few minutes)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements.txt --requirement requirements-dev.txt
	@touch $@

$(VENV)/.docs: $(VENV)/.core requirements-docs.txt
	@echo "Installing the documentation tools into $(VENV) (once)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements-docs.txt
	@touch $@

setup: $(VENV)/.dev $(VENV)/.docs

quickstart: $(VENV)/.core
	$(BIN)/python train.py --config=configs/quickstart.py --workdir=$(RUN)/workdir
	$(BIN)/python eval.py --config=configs/quickstart.py --checkpoint=$(RUN)/workdir --output=$(RUN)/evaluation
	$(BIN)/python -m pid_jax.export --checkpoint=$(RUN)/workdir --output=$(RUN)/huggingface --overwrite
	$(BIN)/python -m pid_jax.quickstart --evaluation=$(RUN)/evaluation --checkpoint=$(RUN)/huggingface

# The tests of a file share compiled programs, so one process runs all of them. The order is that of
# tests/conftest.py: files with slow tests come first.
test: $(VENV)/.dev
	$(BIN)/python -m pytest --numprocesses=auto --maxprocesses=4 --dist=loadfile --no-loadscope-reorder

# An environment of its own: with the compilers, JAX would look for a GPU and a TPU.
$(TARGETS_VENV)/.targets: requirements.txt requirements-dev.txt requirements-targets.txt pyproject.toml
	@test -x $(TARGETS_VENV)/bin/python || $(PYTHON) -m venv $(TARGETS_VENV)
	@echo "Installing the compilers for H100 and TPU into $(TARGETS_VENV) (once; 5.5 GB)"
	@$(TARGETS_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --editable . --requirement requirements-dev.txt --requirement requirements-targets.txt
	@touch $@

targets: $(TARGETS_VENV)/.targets
	JAX_PLATFORMS=cpu $(TARGETS_VENV)/bin/python -m pytest -m targets tests/targets

lint: $(VENV)/.dev $(VENV)/.docs
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && $(MKDOCS) --strict --site-dir "$$folder"

format: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(VENV)/.docs
	$(MKDOCS)

wheel: $(VENV)/.dev
	$(BIN)/python -m build --outdir dist .

clean:
	rm -rf $(VENV) $(TARGETS_VENV) $(RUN) site dist
