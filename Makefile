# `make test` and `make demo` set everything up by themselves; the second time they are quick.
PYTHON ?= python3
BIN := .venv/bin
export OMP_NUM_THREADS ?= 1

.PHONY: help setup test test-slow test-gpu test-integrations lint docs demo reproduce clean

help:
	@echo "make test               lint, types, the quick tests, the examples of docs and docstrings"
	@echo "make test-slow          the tests that take longer than about ten seconds each"
	@echo "make test-gpu           the tests that need a CUDA device"
	@echo "make test-integrations  the tests in the loops of other libraries, which it installs"
	@echo "make lint               lint and types alone"
	@echo "make docs               the documentation as a site, in build/docs"
	@echo "make demo               train a controller, export it, use it and compare it (some minutes)"
	@echo "make reproduce          train the shipped controller again from scratch: an hour of one core, resumes when stopped"
	@echo "make setup              .venv, with all that is needed for development; every target above makes it"
	@echo "make clean              remove .venv and what was built; runs/ stays"

setup: .venv/ready

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

test: setup lint
	$(BIN)/python -m pytest -n 2 --dist worksteal

.venv/integrations-ready: .venv/ready
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[integrations]'
	touch $@

# Where a library is missing this fails; `make test` skips.
test-integrations: .venv/integrations-ready
	METALR_REQUIRE_INTEGRATIONS=1 $(BIN)/python -m pytest tests/integrations tests/test_docs.py

test-slow: setup
	$(BIN)/python -m pytest -m slow

test-gpu: setup
	$(BIN)/python -m pytest -m gpu

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.venv/docs-ready: .venv/ready
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	touch $@

docs: .venv/docs-ready
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

demo: setup
	$(BIN)/python -m experiments.demo

reproduce: setup
	$(BIN)/python -m experiments.general --workers 2

clean:
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
