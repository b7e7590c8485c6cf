# Everything runs from one virtual environment in .venv; `make venv` is a prerequisite of the rest and does nothing twice.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Two runtimes that each start as many threads as there are cores slow each other down.
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: demo test check venv format clean
.DEFAULT_GOAL := help

help:
	@echo "make demo    the whole job once, small, offline, on a CPU; ends with demo/report.html"
	@echo "make test    the tests"
	@echo "make check   ruff and mypy"
	@echo "make venv    the environment alone (.venv)"

venv: $(VENV)/.installed

# The extras are everything that runs on a plain host; `tensorrt` needs an NVIDIA machine.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[onnx,executorch,report,dev]'
	touch $@

demo: venv
	$(BIN)/dspkd demo --out demo

test: venv
	$(BIN)/python -m pytest

check: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: venv
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf demo .pytest_cache .mypy_cache .ruff_cache
