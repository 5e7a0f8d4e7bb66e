# make run    set up and train (ARGS="experiment=cifar100 seed=1" for another run)
# make test   set up and run the tests
# Only needs Python 3.10 to 3.13 (PYTHON=python3.12 selects one).

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
ARGS ?=
TESTS ?= tests
WORKERS ?= 2
CONSTRAINTS ?= constraints.txt
PIP = $(BIN)/python -m pip install --disable-pip-version-check --quiet $(addprefix --constraint ,$(CONSTRAINTS))

.DEFAULT_GOAL := help
.PHONY: help run test test-slow test-long test-min lint format type audit bench docs docs-serve build clean

help: ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(BIN)/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(not (3, 10) <= v <= (3, 13) and "Python 3.10 to 3.13 is needed, this is %d.%d: use make PYTHON=python3.12" % v)'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: $(BIN)/python pyproject.toml $(CONSTRAINTS)
	@echo "Installing into $(VENV). PyTorch is large: this takes a few minutes the first time."
	$(PIP) --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.run
	$(PIP) --editable ".[dev]"
	@touch $@

run: $(VENV)/.run ## set up and train on the digits; ARGS="..." are passed to dkel
	$(BIN)/dkel $(ARGS)

test: $(VENV)/.dev ## set up and run the fast tests; TESTS=path selects some
	$(BIN)/python -m pytest -m "not slow and not long" -n $(WORKERS) --dist worksteal $(TESTS)

test-slow: $(VENV)/.dev ## run the slow tests: whole commands, several processes, all pages
	$(BIN)/python -m pytest -m "slow and not long" -n $(WORKERS) --dist worksteal $(TESTS)

test-long: $(VENV)/.dev ## run the longest tests: kills at random moments, the built wheel; an hour
	$(BIN)/python -m pytest -m long -n $(WORKERS) --dist worksteal $(TESTS)

test-min: ## run the tests with the oldest versions of all dependencies, in a separate environment
	$(MAKE) test test-slow VENV=.venv-min CONSTRAINTS=constraints-min.txt

lint: $(VENV)/.dev ## check style and layout
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/.dev ## fix style and layout
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

type: $(VENV)/.dev ## check types
	$(BIN)/mypy

audit: ## check the pinned versions for known vulnerabilities; CONSTRAINTS=constraints-min.txt for the oldest
	test -x $(VENV)-audit/bin/python || $(PYTHON) -m venv $(VENV)-audit
	$(VENV)-audit/bin/python -m pip install --disable-pip-version-check --quiet $(AUDITOR)
	$(VENV)-audit/bin/pip-audit --disable-pip --no-deps --requirement $(CONSTRAINTS)

AUDITOR := pip-audit==2.10.1

bench: $(VENV)/.run ## time a training step, eager and compiled; ARGS="--backbone resnet18" for another network
	$(BIN)/python scripts/benchmark.py $(ARGS)

docs: $(VENV)/.dev ## build the documentation into site/; warnings are errors
	$(BIN)/zensical build --strict --clean

docs-serve: $(VENV)/.dev ## serve the documentation at localhost:8000
	$(BIN)/zensical serve

build: $(VENV)/.dev ## build wheel and sdist into dist/
	$(BIN)/python -m build

clean: ## remove environments, builds and caches; outputs/ and data/ stay
	rm -rf $(VENV) $(VENV)-audit build dist site .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis lightning_logs
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
