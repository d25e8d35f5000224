# make env makes the environment that all other targets run in; see `make help`.

# the Python to make it with, 3.10 to 3.12
PYTHON ?= python3
# its folder
VENV ?= .venv
# where pip gets Detectron2: this address, a checkout's folder, a wheel or the address of a mirror
DETECTRON2 ?= git+https://github.com/facebookresearch/detectron2.git@02b5c4e295e990042a714712c21dc79b731e8833

BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help env demo micro-batch test test-fast lint check wheel clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 12
	@echo "Variables: PYTHON=$(PYTHON) VENV=$(VENV) DETECTRON2=$(DETECTRON2)"

env: $(READY)  ## make the environment; a Detectron2 that already works is used as it is

$(READY): requirements.txt setup.py
	@PYTHON='$(PYTHON)' VENV='$(VENV)' DETECTRON2='$(DETECTRON2)' sh .ci/setup
	@touch $@

demo: env  ## train a small detector on the CPU and show what it finds
	$(BIN)/python projects/Detection/run_demo.py

micro-batch: env  ## run the experiments of docs/micro-batch.md, and make its tables and plots
	$(BIN)/python projects/MicroBatch/classifier.py
	$(BIN)/python projects/MicroBatch/detector.py
	$(BIN)/python projects/MicroBatch/smoothness.py
	$(BIN)/python projects/MicroBatch/channels.py
	$(BIN)/python projects/MicroBatch/summary.py --results output/micro_batch/small

test: env  ## run all tests
	$(BIN)/python -m pytest

test-fast: env  ## run the tests that take seconds
	$(BIN)/python -m pytest -m "not slow"

lint: env  ## check style and types
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy

check:  ## name what is wrong with the environment, and the cure
	@$(or $(wildcard $(BIN)/python),$(PYTHON)) gnws_d2/check_env.py

# build/ goes first: setuptools would pack what an earlier build left there
wheel: env  ## build a wheel into dist/
	rm -rf build
	$(BIN)/python -m pip wheel . --no-deps --no-build-isolation -w dist

clean:  ## remove what building, testing and linting left, but not the environment
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find gnws_d2 projects tests -name __pycache__ -type d -prune -exec rm -rf {} +
