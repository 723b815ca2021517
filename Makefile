# `make help` lists the targets. Everything goes into .venv, with the exact versions of constraints.txt.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
BASE ?=
ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
WORKERS ?= 2
# uv is quick; where it cannot reach the packages, pip may, because of settings of its own (pip.conf)
install = $(BIN)/uv pip install --quiet $(2) --python $(BIN)/python -c constraints.txt $(1) || { \
  echo "make: uv could not install; trying pip" >&2; $(BIN)/pip install --quiet -c constraints.txt $(1); }
INPUTS := pyproject.toml constraints.txt Makefile

.PHONY: help demo test lint bench profile clean parts
.DELETE_ON_ERROR:

help: ## this list
	@sed -nE 's/^([a-z]+):.*## (.*)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 14

demo: $(VENV)/.demo ## build an environment, again, with one package more, and train a model in it; BASE=registry/image:tag picks the base image
	$(BIN)/python examples/demo.py $(if $(BASE),--base $(BASE))

test: $(VENV)/.dev parts ## every test; ARGS="-k layout" hands options on to pytest
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(ARGS)

lint: $(VENV)/.dev ## ruff, mypy --strict, and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.dev parts ## measure what the documentation claims
	$(BIN)/python -m benchmarks $(ARGS)
	$(BIN)/python -m benchmarks.bytecode $(ARGS)
	$(BIN)/python -m benchmarks.jobs $(ARGS)
	$(BIN)/python -m benchmarks.fleet $(ARGS)

profile: $(VENV)/.dev parts ## the cold path stage by stage, beside this machine's limits
	$(BIN)/python -m benchmarks.profile $(ARGS)

clean: ## remove .venv, caches and build results
	rm -rf $(VENV) .cache .demo dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis

parts: $(VENV)/.dev
	@$(BIN)/python tests/support/parts.py

$(VENV)/.uv: $(INPUTS)
	@command -v $(PYTHON) >/dev/null || { echo "make: no '$(PYTHON)' here; install Python 3.11 or newer, or say make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "make: $$($(PYTHON) --version 2>&1) is too old; Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "make: $(PYTHON) cannot make virtual environments; on Debian: apt-get install python3-venv" >&2; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt uv
	@touch $@

$(VENV)/.demo: $(VENV)/.uv
	$(call install,-e .)
	@touch $@

# tests start hundreds of processes that import Prefect: compiled once, and not by each of them
$(VENV)/.dev: $(VENV)/.uv
	$(call install,-e ".[dev]",--compile-bytecode)
	@touch $@ $(VENV)/.demo
