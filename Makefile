# `make demo` and `make test` set up what they need on a fresh machine: Python 3.11 or newer and make.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin

.PHONY: demo test clean

demo: $(BIN)/lockstep
	$(BIN)/lockstep demo

# What takes no devices runs three at a time, its output shown where it fails; then the scenarios, alone.
test: $(BIN)/tox
	$(BIN)/tox run-parallel --parallel 3 --parallel-no-spinner

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(BIN)/lockstep: $(BIN)/python pyproject.toml
	$(BIN)/pip install --quiet --editable .
	@touch $@

$(BIN)/tox: $(BIN)/python
	$(BIN)/pip install --quiet 'tox>=4.20'

clean:
	rm -rf $(VENV) .tox build *.egg-info
