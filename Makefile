.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

help: ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  %-10s %s\n", $$1, $$2}'

install: $(VENV)/.installed ## create .venv and install Mirage into it (uv when present, else pip)

# Of W&B's package sweeps the tests read schema.json only; its dependencies ask for an old numpy.
$(VENV)/.installed: pyproject.toml
	@if command -v uv >/dev/null; then \
		uv venv --allow-existing --quiet --python $(PYTHON) $(VENV) && uv pip install --quiet -p $(VENV) -e '.[dev]' \
			&& uv pip install --quiet -p $(VENV) --no-deps sweeps; \
	else \
		$(PYTHON) -m venv $(VENV) && $(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]' \
			&& $(BIN)/pip install --quiet --disable-pip-version-check --no-deps sweeps; \
	fi
	@touch $@

demo: install ## train a small GAN on phantoms: minutes on a laptop, no data needed
	$(BIN)/python -m experiments.run demo

test: install ## quick tests, minutes, on all cores
	$(BIN)/python -m pytest -m 'not slow and not full' -n auto --maxprocesses 8 --dist worksteal

test-all: test ## the slow tests too
	$(BIN)/python -m pytest -m slow -n 2

test-full: test-all ## all tests, the whole resume matrix included
	$(BIN)/python -m pytest -m full -n 2

lint: install ## ruff: style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install ## mypy
	$(BIN)/mypy

bench: install ## measure Mirage against plain code, side by side
	$(BIN)/python -m experiments.benchmarks.step
	$(BIN)/python -m experiments.benchmarks.progressive_step
	$(BIN)/python -m experiments.benchmarks.reading
	$(BIN)/python -m experiments.benchmarks.statistics
	$(BIN)/python -m experiments.benchmarks.moments
	$(BIN)/python -m experiments.benchmarks.features
	$(BIN)/python -m experiments.benchmarks.re_identification
	$(BIN)/python -m experiments.benchmarks.score
	$(BIN)/python -m experiments.benchmarks.evaluation
	$(BIN)/python -m experiments.benchmarks.slices --by sex

.PHONY: help install demo test test-all test-full lint types bench
