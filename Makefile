# make setup | check | test | test-slow | test-all | demo | clean
PYTHON ?= python3
BIN := .venv/bin
PYTEST := $(BIN)/python -m pytest -q

.DEFAULT_GOAL := help
.PHONY: help setup check test test-slow test-all demo clean

help:
	@echo "make setup      make .venv with everything that demo and tests use"
	@echo "make check      format, lint, types, import direction"
	@echo "make test       tests and documentation examples, with coverage"
	@echo "make test-slow  the slow tests"
	@echo "make test-all   both"
	@echo "make demo       train a real encoder on three real tasks, in a few minutes"
	@echo "make clean      remove .venv and what runs left behind"

setup: .venv/ready

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "Python 3.11 or newer is needed: make PYTHON=python3.11"'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	touch .venv/ready

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(PYTEST) tests/test_architecture.py

test: setup
	$(PYTEST) -m "not slow" --cov --cov-report=term

test-slow: setup
	$(PYTEST) -m slow

test-all: test test-slow

demo: setup
	$(BIN)/hf-mtl demo

clean:
	rm -rf .venv runs .coverage* build dist *.egg-info
