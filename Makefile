# Tasks. `make` lists them; everything they need is installed into .venv by the first that needs it.
#
# VENV=folder       another environment
# PYTHON=python3.12 another interpreter for a new environment
# CONSTRAINTS=file  versions that pip must keep to (a pip constraints file)
# WORKERS=4         processes that check types and run tests, each on one core and with 1.5 GB of memory

PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?=
WORKERS ?= 2
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check --quiet $(if $(CONSTRAINTS),--constraint $(CONSTRAINTS))
SOURCES := pyproject.toml dreamoving_cli/__init__.py

export HF_HUB_OFFLINE ?= 1

.DEFAULT_GOAL := list
.PHONY: list setup demo test check lint types unit test-all fix goldens cuda bench wheel clean

list: ## list the tasks
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: $(SOURCES) | $(BIN)/python
	$(PIP) --editable .
	@touch $@

$(VENV)/.dev: $(SOURCES) | $(BIN)/python
	$(PIP) --editable '.[train,dev]'
	@touch $@ $(VENV)/.run

setup: $(VENV)/.dev ## make .venv with everything for development

demo: $(VENV)/.run ## install, write example inputs, render them into demo/
	test -f demo/shirt.png || $(BIN)/dreamoving examples demo
	$(BIN)/dreamoving render --pose demo/dance.mp4 --face demo/me.jpg --cloth demo/shirt.png --out demo/render.mp4 --overwrite

test: check ## install what it needs, then lint, types and tests

check: lint types unit ## lint, types, tests

lint: $(VENV)/.dev ## style: ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev ## types: mypy
	$(BIN)/mypy --num-workers $(WORKERS)

unit: $(VENV)/.dev ## the default tests: no weights, no network, no GPU
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --quiet --durations 10 --numprocesses $(WORKERS) --dist worksteal

test-all: $(VENV)/.dev ## all tests that this machine can run, the slow ones too
	$(BIN)/python -m pytest -m "slow or not slow"

fix: $(VENV)/.dev ## repair style where a tool can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

goldens: $(VENV)/.dev ## our modules against the reference's goldens
	$(BIN)/python tests/goldens/check.py tests/goldens/*.safetensors tests/goldens/*.json

cuda: $(VENV)/.dev ## tests that need a CUDA device, each file in a process of its own, 85 seconds at most
	printf '%s\n' tests/cuda/test_*.py tests/unit/test_residency.py | xargs -P 5 -I FILE \
		timeout 85 $(BIN)/python -u -X faulthandler -m pytest -m gpu -v --tb=short FILE

bench: $(VENV)/.run ## speed and memory of this machine, beside diffusers (ARGS=--quick)
	$(BIN)/dreamoving bench $(ARGS)

wheel: $(VENV)/.dev ## build dist/*.whl
	$(BIN)/python -m build --wheel --no-isolation

clean: ## remove what the tasks made
	rm -rf $(VENV) dist build demo .pytest_cache .mypy_cache .ruff_cache .hypothesis
