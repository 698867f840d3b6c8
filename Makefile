# `make` lists the targets. The first target that needs it builds .venv from pyproject.toml and
# constraints.txt; it is built again only when one of the two changes.

PYTHON ?= python3
VENV := .venv
STAMP := $(VENV)/.installed
# Compiled once here, and not again in every process: an import of everything takes half as long.
COMPILE := --compile-bytecode
# Wheels of gigabytes outlast uv's default of 30 seconds on a slow line.
export UV_HTTP_TIMEOUT ?= 600

.PHONY: help train test study lint

help:
	@echo "make train   train the embedded model with PEC: no GPU, no model hub, about five minutes"
	@echo "make test    run the tests"
	@echo "make study   the tests that take minutes each and that 'make test' leaves out"
	@echo "make lint    ruff and pyright"
	@echo "PYTHON=python3.12 make ...   choose the interpreter that .venv is made from"

train: $(STAMP)
	$(VENV)/bin/python jobs/train_pec.py

test: $(STAMP)
	$(VENV)/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

study: $(STAMP)
	$(VENV)/bin/python -m pytest -m study --timeout 1800

lint: $(STAMP)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/pyright

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "error: percent_ray needs Python 3.11 or newer and '$(PYTHON)' is not;" \
	    "set PYTHON=python3.11" >&2; exit 2; }
	@test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	@test -x $(VENV)/bin/uv || $(VENV)/bin/python -m pip install --quiet uv \
	  || echo "uv cannot be had; pip does the same, slower"
	@if test -x $(VENV)/bin/uv; then \
	  $(VENV)/bin/uv pip install $(COMPILE) --python $(VENV)/bin/python -c constraints.txt -e '.[dev]'; \
	else \
	  $(VENV)/bin/python -m pip install -c constraints.txt -e '.[dev]'; \
	fi
	@touch $@
