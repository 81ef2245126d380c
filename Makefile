# Each target sets up what it needs in .venv first; needed beforehand: python3 (3.11 or newer), make, a package index.
#   make quickstart   train a small model, score it, export it, show what prompt-in-decoder saves
#   make test         all tests
#   make lint         formatting, lint and types
#   make format       rewrite the sources as `make lint` wants them
#   make clean        remove .venv and what the quickstart wrote
# Another interpreter: make PYTHON=python3.12 test

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN := runs/quickstart

.DEFAULT_GOAL := help
.PHONY: help quickstart test lint format clean

help:
	@sed -n '/^#   make/s/^#   //p' Makefile

# The stamps: set-up runs once, and again when the requirements change.
$(VENV)/.core: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("error: Python 3.11 or newer is needed, this is " + sys.version.split()[0] + "; try make PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing pid_jax into $(VENV) (once; takes a few minutes)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.core requirements-dev.txt
	@echo "Installing the test and lint tools into $(VENV) (once; takes a few minutes)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements.txt --requirement requirements-dev.txt
	@touch $@

quickstart: $(VENV)/.core
	$(BIN)/python train.py --config=configs/quickstart.py --workdir=$(RUN)/workdir
	$(BIN)/python eval.py --config=configs/quickstart.py --checkpoint=$(RUN)/workdir --output=$(RUN)/evaluation
	$(BIN)/python -m pid_jax.export --checkpoint=$(RUN)/workdir --output=$(RUN)/huggingface --overwrite
	$(BIN)/python -m pid_jax.quickstart --evaluation=$(RUN)/evaluation --checkpoint=$(RUN)/huggingface

# A file's tests share compiled programs, so a file stays with one process.
test: $(VENV)/.dev
	$(BIN)/python -m pytest --numprocesses=auto --maxprocesses=4 --dist=loadfile

lint: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) $(RUN)
