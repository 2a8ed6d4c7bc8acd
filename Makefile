PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
export OMP_NUM_THREADS ?= 1

# Slow tests that `make test` runs too; the others (every parity case, every rule at every size) are for `make test-all`.
SLOW := tests/autopar/cli tests/autopar/measure tests/autopar/runtime tests/autopar/test_parallelize.py \
	tests/examples tests/notebooks tests/solver

.PHONY: demo test test-fast test-all lint format notebook clean

demo: .venv/base  ## plan and train a small GPT over two CPU processes
	$(BIN)/python examples/demo.py

test: .venv/dev  ## everything that CI runs
	$(BIN)/python -m pytest -m "not slow"
	$(BIN)/python -m pytest -m slow $(SLOW)

test-all: .venv/dev  ## every test there is
	$(BIN)/python -m pytest

test-fast: .venv/dev  ## what takes seconds
	$(BIN)/python -m pytest -m "not slow"

lint: .venv/dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: .venv/dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

notebook: .venv/dev  ## execute the notebook again, in place
	$(BIN)/jupyter execute --inplace notebooks/strategy_visualization.ipynb

.venv/base: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) -e .
	touch $@

.venv/dev: .venv/base
	$(PIP) -e ".[dev]"
	touch $@

clean:
	rm -rf .venv .pytest_cache .ruff_cache .mypy_cache .hypothesis autopar_demo
