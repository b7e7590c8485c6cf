# Everything runs from one virtual environment in .venv; `make venv` is a prerequisite of the rest and does nothing twice.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help demo test test-shared check venv format clean
.DEFAULT_GOAL := help

help:
	@echo "make demo    the whole job once, small, offline, on a CPU; ends with demo/report.html"
	@echo "make test    the tests"
	@echo "make test-shared   the tests that need real images beside the checkout (../shared, or DSPKD_SHARED)"
	@echo "make check   ruff and mypy"
	@echo "make venv    the environment alone (.venv)"

venv: $(VENV)/.installed

# The extras are everything that runs on a plain host; `tensorrt` needs an NVIDIA machine.
# `tensorrt-rtx` builds engines without a GPU: it stands in for TensorRT in the tests.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[onnx,executorch,litert,tensorrt-rtx,report,dev]'
	touch $@

demo: venv
	$(BIN)/dspkd demo --out demo --resume

# Two processes with one thread each finish sooner than one process with two threads: the networks of the tests are tiny.
# Files in the order of tests/conftest.py, which has the long ones first.
test: venv
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not shared"

test-shared: venv
	$(BIN)/python -m pytest -m shared

check: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: venv
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf demo .pytest_cache .mypy_cache .ruff_cache
