# RustyDB. `make` alone lists the targets; each sets up .venv first where it is not there or out of date.

.DEFAULT_GOAL := help
SHELL := /bin/sh
.DELETE_ON_ERROR:

# The first that is new enough (3.11); name another one with `make PYTHON=...`.
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	command -v $$p >/dev/null 2>&1 && $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' && echo $$p && break; done)
BIN := .venv/bin
TYPED := protocol engine server enterprise
FORMATTED := $(TYPED) tests tools $(wildcard benchmarks)

# In CI the whole suite is measured, and may not cover less than it does today.
ifeq ($(CI),true)
COVERAGE := --cov --cov-report=term --cov-fail-under=80
endif

.PHONY: help
help: ## List the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 14

# Both end at once when nothing has changed.
.PHONY: environment dev-environment
environment dev-environment:
	@$(if $(PYTHON),,$(error Python 3.11 or later is needed and was not found; name it with make PYTHON=...))
	@$(PYTHON) tools/setup_env.py $(if $(filter dev-%,$@),--dev)

.PHONY: setup
setup: dev-environment ## Make .venv with everything that development needs

.PHONY: run
run: environment ## Serve on port 5432; settings by RUSTYDB_* variables, flags by ARGS="--port 5433"
	@exec $(BIN)/python -m server serve $(ARGS)

.PHONY: test
test: dev-environment ## Run all tests; a part with ARGS="tests/unit -k name"
	@$(BIN)/python -m pytest $(COVERAGE) $(ARGS)

.PHONY: test-quick
test-quick: dev-environment ## Run the tests that take no more than a few seconds each
	@$(BIN)/python -m pytest -m "not slow and not timing" $(ARGS)

.PHONY: check
check: dev-environment ## Format, lint, types, import contracts, architecture
	$(BIN)/ruff format --check --output-format concise $(FORMATTED)
	$(BIN)/ruff check $(FORMATTED)
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q --no-header tests/architecture

.PHONY: fmt
fmt: dev-environment ## Format the code and mend what the linter can
	$(BIN)/ruff format $(FORMATTED)
	$(BIN)/ruff check --fix $(FORMATTED)

.PHONY: docs
docs: dev-environment ## Write the generated parts of docs/ and deploy/ again
	$(BIN)/python tools/gen_docs.py
	$(BIN)/python tools/gen_protocol_docs.py

.PHONY: bench
bench: dev-environment ## Measure the bare engine, PgBouncer (if installed) and RustyDB side by side
	@$(BIN)/python -m benchmarks $(ARGS)

.PHONY: lock
lock: dev-environment ## Write the versions installed in .venv to the lock files
	$(BIN)/python tools/lock.py

.PHONY: clean
clean: ## Remove .venv and every cache
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .coverage .coverage.* build *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
