# Everything a checkout needs, on Linux and macOS; `make help` lists the targets.
# Each target that needs the environment builds it first.

PYTHON ?= python3
# Parallel test processes; each one takes about 1 GB of memory.
JOBS ?= 2
# More arguments for pytest: make test ARGS="tests/data -x"
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PEERS := .peers
# Read from the constraints, so that the version stands in one place.
TORCH := $(or $(shell grep '^torch==' constraints.txt),torch)

.DEFAULT_GOAL := help
.PHONY: help .venv check format test peers test-slow demo clean

help:  ## List the targets.
	@grep -E '^[.a-z-]+:.*## ' $(MAKEFILE_LIST) | sort | \
		awk -F ':.*## ' '{ printf "  make %-10s %s\n", $$1, $$2 }'

# The stamp is touched last, so an interrupted installation is taken up again.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import platform, sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed, $(PYTHON) is " + platform.python_version() + "; try: make PYTHON=python3.12")'
	@echo 'Installing into $(VENV): about 1 GB, some minutes.'
	$(PYTHON) -m venv $(VENV)
# torch comes first and alone: it is the largest part, and no other package may choose its version.
	$(BIN)/python -m pip install --quiet --constraint constraints.txt "$(TORCH)"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

.venv: $(INSTALLED)  ## Build the environment, or renew it after a change of the pins.

check: $(INSTALLED)  ## Formatting, lint and types.
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(INSTALLED)  ## Rewrite the code in the project's format.
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# One thread a process: with more, the processes fight for the cores and all lose. A file stays with
# one worker: several start programs of their own, which all their tests look at. They come in order,
# the longest first.
test: $(INSTALLED)  ## The fast tests.
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -n $(JOBS) --dist loadfile \
		--no-loadscope-reorder $(ARGS)

peers: $(PEERS)/.installed  ## The sources' own code, which slow tests compare conversions with.

# fairseq comes as source: a C++ compiler builds it. What the packages ask for would bring another
# torch along; what is needed of it stands in the list.
$(PEERS)/.installed: tests/peers.txt $(INSTALLED)
	rm -rf $(PEERS)
	$(BIN)/python -m pip install --quiet --target $(PEERS) --no-deps --requirement tests/peers.txt
# JoeyNMT's own tests would hide Python's package of that name.
	rm -rf $(PEERS)/test
	@touch $@

# The peers take part once `make peers` has put them there.
test-slow: $(INSTALLED)  ## The slow tests: minutes each, and those of real data.
	PYTHONPATH=$(CURDIR)/$(PEERS) $(BIN)/python -m pytest -m slow $(ARGS)

demo: $(INSTALLED)  ## Train, score, translate and draw pictures on the embedded corpus.
	$(BIN)/python scripts/demo.py

clean:  ## Remove the environment and everything built.
	rm -rf $(VENV) $(PEERS) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -type d -name __pycache__ -prune -exec rm -rf {} +
