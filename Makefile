# make env makes the environment that all other targets run in; see `make help`.

# the Python to make it with, 3.10 to 3.13
PYTHON ?= python3
# its folder
VENV ?= .venv
# Detectron2: pypi, a checkout's folder, a wheel or an address; without it, the public repository at
# the pinned commit, or PyPI where that is out of reach or does not compile
DETECTRON2 ?=
# the version of torch, if not the pinned one, and an index besides PyPI to find it in
TORCH ?=
TORCH_INDEX ?=

BIN := $(VENV)/bin
# two processes of one thread each: see tests/conftest.py
PYTEST := $(BIN)/python -m pytest -n 2 --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help env demo micro-batch test test-fast lint docs check wheel clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 12
	@echo "Variables: PYTHON VENV DETECTRON2 TORCH TORCH_INDEX (docs/installation.md)"

env:  ## make the environment; a Detectron2 that already works is used as it is
	@VENV='$(VENV)' DETECTRON2='$(DETECTRON2)' TORCH='$(TORCH)' TORCH_INDEX='$(TORCH_INDEX)' \
		$(PYTHON) .ci/setup

demo: env  ## train a small detector on the CPU and show what it finds
	$(BIN)/python projects/Digits/run_demo.py

micro-batch: env  ## run the experiments of docs/micro-batch.md, and make its tables and plot
	$(BIN)/python projects/MicroBatch/detector.py
	$(BIN)/python projects/MicroBatch/finetune.py
	$(BIN)/python projects/MicroBatch/classifier.py
	$(BIN)/python projects/MicroBatch/summary.py --results output/micro_batch

test: env  ## run all tests
	$(PYTEST)

test-fast: env  ## run the tests that take seconds
	$(PYTEST) -m "not slow"

lint: env  ## check style and types
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy

docs: env  ## build the documentation site: build/docs/index.html
	$(BIN)/python -m sphinx -W --keep-going -q -c docs -d build/docs-cache . build/docs

check:  ## diagnose the environment and print fixes
	@$(or $(wildcard $(BIN)/python),$(PYTHON)) projects/Command/check_env.py

# the wheel is made from the sdist, as an index has it
wheel: env  ## build an sdist and a wheel into dist/, and check them
	rm -rf dist
	$(BIN)/python -m pip install -q --disable-pip-version-check build twine
	$(BIN)/python -m build
	$(BIN)/python -m twine check --strict dist/*

clean:  ## remove what building, testing and linting left, but not the environment
	rm -rf build dist docs/api docs/models *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find gnws_d2 projects tests -name __pycache__ -type d -prune -exec rm -rf {} +
