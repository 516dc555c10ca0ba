# The same verbs locally and in CI. Everything runs in .venv, made on first use.
PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin
JOBS   ?= 3
STAMP   = $(VENV)/.installed
# Three for two processors: a quarter of the time, tests wait for the processes they start.
# A file stays with one worker, and files begin in the order of tests/longest_files.txt; left to itself,
# pytest-xdist begins with those of most tests, and the long ones of few tests come last.
SPREAD  = -n $(JOBS) --dist loadfile --no-loadscope-reorder
# Where Python is told to keep no bytecode, each process that starts, hundreds in the tests, would compile
# all our modules again; empty says that it may.
export PYTHONDONTWRITEBYTECODE =

.PHONY: help demo up client test test-slow coverage docs lint types audit format bench screenshots lock clean
.DEFAULT_GOAL := help

help:
	@echo "make demo       observations over HTTP to analysis files, on this machine, in minutes"
	@echo "                DEMO=--stay leaves the system running, to look at in a browser"
	@echo "make up         the whole system in the foreground (appa up)"
	@echo "make client     the synchronous client from the asynchronous one"
	@echo "make test       all tests          make test-slow   slow science too"
	@echo "make lint types docs  checks       make bench       tables of speed and skill"
	@echo "make audit      secrets among the files, advisories against the packages"
	@echo "make screenshots  pictures of the pages into docs/images, of demo-output/data or URL=…;"
	@echo "                VIEWS='cycles verification' of a system that cycles"
	@echo "make coverage   what the tests reach"

$(STAMP): pyproject.toml client/pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0]) if sys.version_info < (3, 11) else None'
	@echo "installing into $(VENV): some minutes, 3.5 GB, more where pip brings torch for CUDA"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade -c constraints.txt pip
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ./client -e '.[dev]'
	touch $@

demo: $(STAMP)
	$(BIN)/appa demo $(DEMO)

up: $(STAMP)
	$(BIN)/appa up

client: $(STAMP)
	$(BIN)/python client/make_sync.py

test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m 'not slow' $(SPREAD)

test-slow: $(STAMP)
	$(BIN)/python -m pytest

coverage: $(STAMP)
	$(BIN)/python -m pytest -m 'not slow' $(SPREAD) --cov --cov-report=term

docs: $(STAMP)
	$(BIN)/zensical build --strict

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/python client/make_sync.py --check

types: $(STAMP)
	$(BIN)/mypy

audit: $(STAMP)
	$(BIN)/python .ci/audit.py

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP)
	$(BIN)/python -m benchmarks

URL   ?= demo-output/data
VIEWS ?= map place pole chance observations work
screenshots: $(STAMP)
	$(BIN)/python -m lab.demo.screenshots $(URL) docs/images $(VIEWS:%=--view %)

lock:
	rm -rf .venv-lock && $(PYTHON) -m venv .venv-lock
	.venv-lock/bin/python -m pip install --quiet 'torch==2.13.0' && .venv-lock/bin/python -m pip install --quiet -e ./client -e '.[dev,lab]'
	.venv-lock/bin/python -m pip freeze --all --exclude-editable | sed 's/+cpu//' > constraints.txt
	rm -rf .venv-lock

clean:
	rm -rf $(VENV) build dist *.egg-info client/*.egg-info
