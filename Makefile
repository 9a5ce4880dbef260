# Everything a contributor and CI do. `make help` lists the targets.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TESTS ?= tests
# Two workers share the tests; PYTEST_OPTIONS= runs them one after the other.
PYTEST_OPTIONS ?= -n 2 --dist worksteal

# Real tests need their own network interfaces. Root has them; everybody else borrows a user
# namespace with a private /run, where `ip netns` keeps its names. Where the kernel gives none, the
# tests that need one are skipped.
UNSHARE := unshare --map-root-user --net --mount
AS_ROOT := $(if $(filter 0,$(shell id -u)),,$(if $(shell $(UNSHARE) true 2>/dev/null && echo yes), \
	$(UNSHARE) sh -c 'mount -t tmpfs tmpfs /run && ip link set lo up && exec "$$@"' sh))

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-long test-real lint format docs bench coverage clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## make .venv with the package and its tools

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "setup: $(PYTHON) is missing or older than Python 3.11; say make PYTHON=/path/to/python3.11" >&2; \
	  exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
	  echo "setup: $(PYTHON) has no venv module; on Debian: apt-get install python3-venv" >&2; \
	  exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	PIP_CONSTRAINT=constraints.txt $(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  --editable '.[dev]'
	@touch $@

demo: setup ## three agents on this machine: join, ask, kill, return, leave
	$(BIN)/clusternode demo

# Tests start many programs, each of which would compile every module anew where bytecode is not
# written; here it always is, where it is in nobody's way.
test test-long test-real: export PYTHONDONTWRITEBYTECODE :=
test test-long test-real: export PYTHONPYCACHEPREFIX := $(CURDIR)/$(VENV)/bytecode

test: setup ## the tests that need no outside program
	$(BIN)/python -m pytest -q -m "not real and not long" $(PYTEST_OPTIONS) $(TESTS)

test-long: setup ## mutants, sieges and large simulated stories, for minutes
	$(BIN)/python -m pytest -q -m "long and not real" $(PYTEST_OPTIONS) $(TESTS)

test-real: setup ## tests against real programs and networks
	$(AS_ROOT) $(BIN)/python -m pytest -q -m real $(TESTS)

lint: setup ## style, types, import directions, generated pages
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/python docs/generate.py --check
	.ci/check-portable

format: setup ## let ruff format and fix what it safely can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: setup ## write the generated pages and sections
	$(BIN)/python docs/generate.py

bench: setup ## measure real agents on this machine
	$(BIN)/clusternode bench

coverage: setup ## run the tests and show which branches they missed
	$(BIN)/coverage run -m pytest -q -m "not real" $(TESTS)
	$(BIN)/coverage report

clean: ## remove what the other targets made
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .coverage \
	  dist build
	find clusternode tests docs -name __pycache__ -type d -prune -exec rm -rf {} +
