# Each target does its own set-up: a virtual environment with the compiled core and what the target needs.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
SOURCES := setup.py pyproject.toml $(wildcard ext/kombulite/_core/*)

.PHONY: run test bench lint debug sanitize fuzz clean

run: $(VENV)/.installed  ## the main job: a stream of events over the embedded broker
	$(BIN)/python -m kombulite run

test: $(VENV)/.installed  ## all tests, with branch coverage
	$(BIN)/pytest --cov --cov-report=term

bench: $(VENV)/.installed  ## all benchmarks beside kombu, and the table of ratios
	$(BIN)/python -m bench

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/cython-lint ext

$(VENV)/.installed: $(SOURCES)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

debug:  ## unoptimised core with annotated sources below build/c
	KOMBULITE_DEBUG=1 $(MAKE) --always-make $(VENV)/.installed

clean:
	rm -rf $(VENV) build dist *.egg-info .coverage
	find kombulite -name '*.so' -delete
