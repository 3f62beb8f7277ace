# Needs Python 3.11 to 3.13 and make. `make help` lists what there is.
.DEFAULT_GOAL := help
.PHONY: help demo setup venv test test-slow check format clean

VENV := .venv
BIN := $(VENV)/bin
SUITABLE := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))
# The first suitable Python there is; `make setup PYTHON=/path/to/python3.12` takes another.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
  $$p -c '$(SUITABLE)' 2>/dev/null && command -v $$p && break; done)
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input -qq
ARGS ?=

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: setup  ## train preset=medium on the embedded digits; ARGS="..." adds settings
	$(BIN)/python train.py preset=medium $(ARGS)

test: setup  ## the tests (under 10 minutes on 2 cores)
	$(BIN)/python -m pytest -q --numprocesses auto --maxprocesses 4 --dist loadfile

test-slow: setup  ## the tests that take minutes: wheel, notebook, wandb
	$(BIN)/python -m pytest -q -m slow

check: setup  ## style, types, and who may import whom
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright
	$(BIN)/lint-imports

format: setup  ## write the style that check wants
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

setup: $(VENV)/.installed  ## make .venv and install the pinned versions into it, once

venv: $(VENV)/.made  ## make the empty .venv only

$(VENV)/.made:
	@test -n "$(PYTHON)" || { echo "No Python 3.11, 3.12 or 3.13 is found: install one of them." >&2; exit 1; }
	@"$(PYTHON)" -c '$(SUITABLE)' 2>/dev/null || { \
	  echo "$(PYTHON) is $$("$(PYTHON)" --version 2>/dev/null || echo not a Python that runs), and 3.11 to 3.13 is needed: make setup PYTHON=python3.12" >&2; exit 1; }
	@"$(PYTHON)" -c 'import venv, ensurepip' 2>/dev/null || { \
	  echo "$(PYTHON) has no venv module: install it (Debian and Ubuntu: apt install python3-venv), then run make again." >&2; exit 1; }
	@if test -e $@ || ! { $(BIN)/python -c '$(SUITABLE)' && $(BIN)/python -m pip --version; } >/dev/null 2>&1; then \
	  rm -rf $(VENV) && "$(PYTHON)" -m venv $(VENV); fi  # one that you made and that works is kept
	@pwd -P > $@

# A .venv that was moved, or whose Python has gone (an upgrade), is made anew.
ifneq ($(wildcard $(VENV)/.made),)
ifneq ($(shell test "$$(cat $(VENV)/.made)" = "$$(pwd -P)" && $(BIN)/python -c 'print(1)' 2>/dev/null),1)
.PHONY: $(VENV)/.made $(VENV)/.installed
endif
endif

$(VENV)/.installed: requirements.txt pyproject.toml | $(VENV)/.made
	@echo "Installing into $(VENV): some 7 GB with CUDA libraries, a few minutes, once ..."
	@$(PIP) install -r requirements.txt
	@$(PIP) install --no-build-isolation --no-deps --editable .
	@touch $@

clean:  ## delete .venv and what tools left behind; runs and caches of images stay
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis .import_linter_cache
