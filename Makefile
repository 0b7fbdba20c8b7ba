# The commands of the README. Each creates .venv when it is missing; a second run is fast.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test check lint schema clean

demo: $(STAMP)
	$(BIN)/hourglass demo

# Many processes import the same modules: they are compiled once, even where Python is told not to.
test: $(STAMP)
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 3 --no-loadscope-reorder

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	$(BIN)/mypy
	$(BIN)/lint-imports

check: lint test

schema: $(STAMP)
	$(BIN)/hourglass schema docs/schema

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/python -m compileall -q platform
	touch $(STAMP)

clean:
	rm -rf $(VENV) .hourglass .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
