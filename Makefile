# Every target that needs the package first makes .venv ready. That is done by tools/setup_venv.py, which
# returns at once when nothing it depends on has changed.

PYTHON ?= python3
ARGS ?=
BIN := .venv/bin
SETUP := tools/setup_venv.py

.DEFAULT_GOAL := help
.PHONY: help serve test test-all lint format bench setup setup-dev check-python

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

serve: setup ## start the server on the embedded model; ARGS="..." are given to `moonlet serve`
	@$(BIN)/moonlet serve $(ARGS)

test: lint ## lint, then every test that is not slow; ARGS="..." are given to pytest
	@$(BIN)/python -m pytest -m "not slow" $(ARGS)

test-all: lint ## lint, then every test
	@$(BIN)/python -m pytest $(ARGS)

lint: setup-dev ## formatting, lint rules and types
	@$(BIN)/ruff format --check
	@$(BIN)/ruff check
	@$(BIN)/pyright

format: setup-dev ## write the formatting and the fixes that ruff is sure of
	@$(BIN)/ruff format
	@$(BIN)/ruff check --fix

bench: setup-dev ## run every script in benchmarks/
	@for script in benchmarks/*.py; do \
		if [ -e "$$script" ]; then $(BIN)/python "$$script" || exit 1; else echo "no benchmarks yet"; fi; \
	done

setup: check-python ## make .venv ready to run moonlet
	@$(PYTHON) $(SETUP) run

setup-dev: check-python ## make .venv ready to test moonlet too
	@$(PYTHON) $(SETUP) dev

check-python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo 'moonlet needs Python 3.11 or newer and "$(PYTHON)" is none: name one, as in make serve PYTHON=python3.12' >&2; \
		exit 1; }
