# `make help` lists the targets.

VENV := .venv
PYTHON := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed
INSTALLED_BENCH := $(VENV)/.installed-bench
INSTALLED_DOCS := $(VENV)/.installed-docs
TORCH := $(shell sed -n '/^torch==/p' constraints.txt)
PIP_INSTALL := $(PYTHON) -m pip install --disable-pip-version-check --constraint constraints.txt

ARGS ?=
PORT ?= 5000
STORE ?=
ROUNDS ?= 50
SEED ?= 1

# Containers often set it; each of a job's and the tests' processes would then compile all modules again.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup train tune test test-long cluster-test chaos check ui tracking bench docs

help: ## list the targets
	@echo 'make TARGET [ARGS="..."]'
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  \1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{ printf "%-12s %s\n", $$1, $$2 }'

setup: $(INSTALLED) ## create .venv with all dependencies; the other targets call it
	@:

# torch is installed first and separately: it is by far the largest download, so its progress is shown.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -m pip --version > /dev/null 2>&1 || { \
		for python in python3.11 python3; do \
			$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null && break; \
			python=; \
		done; \
		test -n "$$python" || { echo 'error: no Python 3.11 or newer is on PATH: install it' >&2; exit 2; }; \
		echo "setup: $(VENV) with $$($$python --version)"; \
		$$python -m venv --clear $(VENV) || { \
			echo "error: $$python -m venv failed: install its venv module (Debian: python3-venv)" >&2; exit 2; }; \
	}
	@echo 'setup: $(TORCH), once; the largest download'
	@$(PIP_INSTALL) $(TORCH)
	@echo 'setup: the rest, a few minutes, once'
	@$(PIP_INSTALL) --quiet --editable '.[dev]'
	@touch $@

train: setup ## train on the digits with 2 workers; ARGS="key=value ..." changes the config
	@$(PYTHON) jobs/train.py jobs/configs/digits.yaml $(ARGS)

tune: setup ## sweep learning rate and width on the digits; ARGS="key=value key=range ..."
	@$(PYTHON) jobs/tune.py jobs/configs/tune.yaml $(ARGS)

# Three processes, each file in one of them, as tests/conftest.py groups them. Files run in alphabetical order, in which
# the slow ones come first.
PYTEST := $(PYTHON) -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder

test: setup ## run the tests but the long ones; ARGS="tests/unit -k name" picks some
	@$(PYTEST) -m "not long" $(ARGS)

test-long: setup ## run the tests that kill processes, take services away or go through runs of earlier versions
	@$(PYTEST) -m long $(ARGS)

cluster-test: setup ## run cluster.yaml and a Slurm cluster on hosts made of this machine; needs root
	@$(PYTHON) -m pytest -q -rs tests/jobs/test_ray_up.py tests/jobs/test_slurmctld.py $(ARGS)

chaos: setup ## disturb jobs at random moments, and compare them with uninterrupted ones; ROUNDS=50 SEED=1
	@$(PYTHON) tests/chaos.py $(ROUNDS) $(SEED)

check: setup ## formatting, lint, types
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	MYPYPATH=platform:benchmarks:tests $(VENV)/bin/mypy --explicit-package-bases --follow-imports=silent benchmarks/*.py

ui: setup ## open the MLflow UI on the store of the runs; STORE=sqlite:///PATH PORT=5000
	@exec env PYTHONPATH=platform $(PYTHON) -m shoal ui '$(STORE)' --port $(PORT)

tracking: setup ## start an MLflow server on PostgreSQL, with passwords; TRACKING_HOME=... TRACKING_PORT=5000
	@exec deploy/tracking/start.sh

bench: $(INSTALLED_BENCH) ## measure Shoal beside its peers: every figure of docs/reference/figures.md
	@$(PYTHON) benchmarks/all.py $(ARGS)

$(INSTALLED_BENCH): $(INSTALLED)
	@$(PIP_INSTALL) --quiet --editable '.[dev,bench]'
	@touch $@

docs: $(INSTALLED_DOCS) ## build the pages of docs/ into site/, links checked; ARGS="serve" shows them on port 8000
	@$(PYTHON) docs/generate.py
	@NO_MKDOCS_2_WARNING=1 $(PYTHON) -m mkdocs $(or $(ARGS),build --strict --quiet)
	@test -n "$(ARGS)" || echo 'site/index.html'

$(INSTALLED_DOCS): $(INSTALLED)
	@$(PIP_INSTALL) --quiet --editable '.[dev,docs]'
	@touch $@
