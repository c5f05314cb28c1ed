# Two commands: `make lab` opens the course, `make test` runs what CI runs. Each target sets up what it needs, once.
#
#   PYTHON=python3.12        another Python 3.11 or 3.12      VENV=.venv-312   another folder for it
#   PIP_EXTRA_INDEX_URL=…    any PIP_* setting reaches pip: this is how to choose PyTorch's CPU build (README.md)
#   ARGS="--port 9999"       more options for the command behind a target      BROWSER=none   `lab` opens no browser

VENV ?= .venv
BIN := $(VENV)/bin
PY := $(BIN)/python
JOBS ?= 2
ARGS ?=
GPU_PYTHON ?= python3
export PATH := $(CURDIR)/$(BIN):$(PATH)

# The first Python that runs, is 3.11 or 3.12 and can make an environment (Debian's needs its python3-venv package).
PROBE := import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))
PYTHON ?= $(firstword $(foreach python,python3.12 python3.11 python3,$(shell $(python) -c '$(PROBE)' 2>/dev/null && echo $(python))))

# One thread for each test: several workers that each take every core only wait for each other.
ONE_THREAD := OMP_NUM_THREADS=1
PYTEST := $(ONE_THREAD) $(PY) -m pytest
# Seconds after which a test hangs, where one may grade a whole class.
PATIENT := -o faulthandler_timeout=1200

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help lab test aot e2e siege prove grade bench cluster experiments gpu notebooks models doctor lint format clean

help:  ## list the targets
	@sed -n 's/^\([a-z0-9]*\):[^#]*## /  make \1~/p' $(firstword $(MAKEFILE_LIST)) | awk -F'~' '{printf "%-18s %s\n", $$1, $$2}'

# --- the environment: stamps in $(VENV), so that a second start takes seconds ---------------------------------------

$(PY):
	@test -n "$(PYTHON)" || { echo "No Python 3.11 or 3.12 found (with its venv module; on Debian: python3-venv)."; \
	  echo "Install one, or name one: make $(MAKECMDGOALS) PYTHON=/path/to/python3.12"; exit 1; }
	@$(PYTHON) -c '$(PROBE)' || { echo "PYTHON=$(PYTHON) is not Python 3.11 or 3.12 with the venv module."; exit 1; }
	@echo "1/4 A Python environment in $(VENV), from $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.labs: constraints.txt pyproject.toml | $(PY)
	@$(PY) course/doctor.py --before-install
	@echo "2/4 Packages from constraints.txt (a few minutes, about 2 GB on disk with PyTorch's CPU build)"
	@$(PY) -m pip install --disable-pip-version-check -c constraints.txt -e ".[labs]"
	@touch $@

$(VENV)/.dev: constraints.txt pyproject.toml | $(VENV)/.labs
	@echo "    Packages for tests and checks"
	@$(PY) -m pip install --disable-pip-version-check --quiet -c constraints.txt -e ".[dev]"
	@touch $@ $(VENV)/.labs

# Tried once: without a network, each start would wait for it. `make models` tries again.
$(VENV)/.models: course/models.txt | $(VENV)/.labs
	@echo "3/4 Models and text (182 MB)"
	@$(PY) -m course models
	@touch $@

# --- for students ---------------------------------------------------------------------------------------------------

lab: $(VENV)/.labs $(VENV)/.models  ## open the course in JupyterLab
	@echo "4/4 Notebooks and JupyterLab"
	-@$(PY) -m course notebooks
	@$(PY) -m course lab $(ARGS)

doctor: $(VENV)/.labs  ## is this machine ready? one fix per problem
	@$(PY) -m course doctor $(ARGS)

models: $(VENV)/.labs  ## fetch the real model and text again
	@$(PY) -m course models && touch $(VENV)/.models

# --- for authors and CI ---------------------------------------------------------------------------------------------

test: $(VENV)/.dev $(VENV)/.models lint  ## what CI needs: lint, types, stale notebooks, tests, coverage
	$(PY) -m course notebooks --check
	$(PY) -m course readme --check
	$(PYTEST) -n $(JOBS) -m "not e2e" --cov --cov-report=term:skip-covered --cov-fail-under=95 $(ARGS)

lint: $(VENV)/.dev  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.dev  ## let ruff rewrite what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

e2e: $(VENV)/.dev $(VENV)/.models  ## real servers, notebooks in real kernels, whole grading cycles, the siege
	$(ONE_THREAD) $(PY) -m course notebooks --check --execute
	$(PYTEST) -m e2e $(PATIENT) $(ARGS)

siege: $(VENV)/.dev  ## of make e2e the siege alone: every attack in every tier, classes graded under kill -9
	$(PYTEST) -m siege $(PATIENT) $(ARGS)

notebooks: $(VENV)/.dev $(VENV)/.models  ## rebuild stale notebooks, the audit, the syllabus and README's tables
	$(PY) -m course notebooks --execute $(ARGS)
	$(PY) -m course audit --quiet
	$(PY) -m course syllabus
	$(PY) -m course readme

prove: $(VENV)/.dev  ## the graders' exam: every mistake and every cheat must lose points
	$(ONE_THREAD) $(PY) -m autograder prove $(ARGS)

grade: $(VENV)/.dev  ## grade a synthetic class of known scores through nbgrader
	$(ONE_THREAD) $(PY) -m autograder rehearse $(ARGS)

bench: $(VENV)/.dev $(VENV)/.models  ## ratios to named peers on this machine
	$(PY) -m refimpl.bench $(ARGS)

cluster: $(VENV)/.dev  ## a SLURM of four nodes on this machine: what a slow network and a lost node cost
	$(PY) -m refimpl.parallel.cluster $(ARGS)

experiments: $(VENV)/.dev $(VENV)/.models  ## the claims of the source lectures, tried small; ARGS="38 --force" runs one anew
	$(ONE_THREAD) $(PY) -m refimpl.experiments $(ARGS)

# The oldest Triton that pyproject.toml allows, in a folder of its own; constraints.txt pins the newest.
$(VENV)/triton-3.6: | $(VENV)/.labs
	@echo "    Triton 3.6 beside the pinned one (640 MB on disk)"
	@$(PY) -m pip install --disable-pip-version-check --quiet --no-deps --target $@ triton==3.6.0

aot: $(VENV)/.dev $(VENV)/triton-3.6  ## every kernel compiles for A100 and H100, and runs, on the oldest and newest Triton
	$(PY) -m refimpl.aot --check --all $(ARGS)
	PYTHONPATH=$(VENV)/triton-3.6 $(PY) -m refimpl.aot --check --all $(ARGS)
	PYTHONPATH=$(VENV)/triton-3.6 $(PYTEST) -m "not e2e and not slow" $(wildcard refimpl/tests/test_*kernel*.py)

# No environment: a GPU machine has its own torch and Triton, and needs only numpy and pytest beside them. Hence no
# settings from pyproject.toml, which name plugins that may be missing there.
gpu:  ## the kernels' tests and timings on CUDA
	PYTHONPATH=. $(GPU_PYTHON) -m pytest -q -c /dev/null --rootdir=. -p no:cacheprovider --import-mode=importlib \
	  -W ignore::pytest.PytestUnknownMarkWarning -m gpu refimpl
	PYTHONPATH=. $(GPU_PYTHON) -m refimpl.bench --device gpu $(ARGS)

clean:  ## remove caches and build products; never .venv, never my-course
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .coverage .coverage.* htmlcov
	find refimpl autograder course lectures labs -name __pycache__ -type d -prune -exec rm -rf {} +
