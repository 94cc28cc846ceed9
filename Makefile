# One command per need. `make help` lists them; PYTHON is the interpreter that the virtual environment is made with.
#
# Everything is installed into .venv of this clone, and nothing outside it is touched. The stamps say what is installed
# there; they are made anew when pyproject.toml changes.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUNTIME := $(VENV)/.runtime
DEV := $(VENV)/.dev
PLOTS := $(VENV)/.plots

# An environment that is active in the caller's shell, or meant for other trees, must not leak into ours.
unexport PYTHONPATH PYTHONHOME VIRTUAL_ENV PIP_TARGET PIP_PREFIX PIP_USER PIP_REQUIRE_VIRTUALENV

PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

.DEFAULT_GOAL := help
.PHONY: help setup demo run test check unit drills drills-long bench plots clean

help: ## show this
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 16

setup: $(DEV) ## install the server and all that development needs into .venv

demo: $(RUNTIME) ## start a server with a simulated fleet and watch a campaign (needs the runtime packages only)
	$(BIN)/openiodm demo

run: $(RUNTIME) ## start a server that keeps its data in ./data
	$(BIN)/openiodm serve

test: check ## everything that CI runs: lint, types, and all tests, on SQLite and PostgreSQL
	$(BIN)/pytest --cache-clear --numprocesses 2 --dist worksteal || $(BIN)/python -m tests.again $$?

check: $(DEV) ## lint and types only
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

unit: $(DEV) ## the fast tests: no server process, no PostgreSQL
	$(BIN)/pytest tests/unit tests/properties

drills: $(DEV) ## kill, freeze and starve real servers in mid-campaign, on both engines (some ten minutes on an idle machine)
	$(BIN)/python -m tests.drills.kills --kills 10 --devices 1000 --report docs/drills/kills.md
	$(BIN)/python -m tests.drills --report docs/drills/faults.md

drills-long: $(DEV) ## the same with up to 100,000 devices (hours; reports go into .drills)
	mkdir -p .drills
	$(BIN)/python -m tests.drills.kills --kills 50 --devices 100000 --report .drills/kills.md
	$(BIN)/python -m tests.drills --long --report .drills/faults.md

bench: $(DEV) ## compare with the Python peer on this machine (some twelve minutes; ARGS=--quick for two)
	$(BIN)/python bench/compare.py $(ARGS)

plots: $(PLOTS) ## draw the plots of docs/performance.md from bench/results
	$(BIN)/python bench/plots.py

clean: ## remove what was installed, built and cached (./data stays)
	rm -rf $(VENV) dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis .schemathesis
	find src tests bench -name __pycache__ -type d -prune -exec rm -rf {} +

# pip is the last thing that comes into a virtual environment: where it is missing, the making was cut short.
$(BIN)/pip:
	$(PYTHON) -m venv --clear $(VENV)

$(RUNTIME): pyproject.toml | $(BIN)/pip
	$(PIP) install --editable .
	@touch $@

# After the runtime, not beside it: two pips in one environment would trip over each other under `make -j`.
$(DEV): pyproject.toml $(RUNTIME)
	$(PIP) install --editable '.[dev]'
	@touch $@

$(PLOTS): pyproject.toml $(DEV)
	$(PIP) install --editable '.[plots]'
	@touch $@
