# make quickstart | test | lint | bench | kills | faults; each does all of its set-up. Options: PYTHON=python3.12 ARGS="-k plan"
# Paths here are relative and without spaces; the checkout itself may lie in a path that has some.

PYTHON ?= python3
WORKERS ?= 2
KILLS ?= 50
FAULTS ?= 200
ARGS ?=
PY := .venv/bin/python
PIP := $(PY) -m pip --disable-pip-version-check install -c constraints.txt
QUICKSTART := configs/studies/quickstart.yaml
CODE := toolkit jobs slurm tests
BENCHES := $(filter-out __init__,$(basename $(notdir $(wildcard tests/bench/*.py))))

# Tests and benchmarks share the machine: one thread each, no waiting in busy loops, no network.
ENVIRONMENT := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1

.PHONY: help install install-dev quickstart test lint bench kills faults
.DELETE_ON_ERROR:

help:
	@sed -n 1p Makefile

install: .venv/.installed
install-dev: .venv/.installed-dev

$(PY):
	@command -v "$(PYTHON)" > /dev/null || \
		{ echo "there is no '$(PYTHON)' here: install Python 3.11 or newer, or say where it is: make PYTHON=/path/to/python" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "Tidemark needs Python 3.11 or newer; %s is %d.%d. Say which one to take: make PYTHON=python3.11" % (sys.executable, *sys.version_info[:2]))'
	"$(PYTHON)" -m venv .venv

# torch comes first and by itself: the platform decides between its CUDA and its CPU build, and DeepSpeed's source
# package imports it (hence no build isolation, and what such builds need before that).
.venv/.installed: setup.cfg pyproject.toml constraints.txt | $(PY)
	$(PIP) torch setuptools wheel ninja py-cpuinfo
	$(PIP) --no-build-isolation -e .
	@touch $@

.venv/.installed-dev: .venv/.installed
	$(PIP) --no-build-isolation -e '.[dev]'
	@touch $@

quickstart: install
	.venv/bin/tidemark launch $(QUICKSTART) --workers $(WORKERS)
	@echo; echo "Exact match of the answers about held-out people, by pre-training step:"
	@.venv/bin/tidemark table $(QUICKSTART) --rows step --cols model --values exact_match --where stage=quality --where task=all
	@echo; echo "The right answer found among four (chance is 0.25):"
	@.venv/bin/tidemark table $(QUICKSTART) --rows step --cols model --values acc --where stage=scores
	@echo; echo "The same with four examples in the prompt instead of tuning:"
	@.venv/bin/tidemark table $(QUICKSTART) --rows step --cols stage --values acc --where stage=few_shot
	@echo
	.venv/bin/tidemark report $(QUICKSTART)

# Three files at a time: half of the suite waits for Slurm, which needs no core.
test: install-dev
	$(ENVIRONMENT) $(PY) -m pytest -n 3 --dist loadfile $(ARGS)

lint: install-dev
	$(PY) -m flake8 $(CODE)
	$(PY) -m isort --check $(CODE)
	$(PY) -m black --check --quiet -l 120 $(CODE) || { $(PY) -m black --check -l 120 $(CODE); exit 1; }
	$(PY) -m mypy toolkit slurm

bench: install-dev
	$(foreach bench,$(BENCHES),$(ENVIRONMENT) $(PY) -m tests.bench.$(bench) &&) true

# The launcher, a worker or a stage killed at random moments, over and over; `make test` does it a few times.
kills: install-dev
	$(ENVIRONMENT) $(PY) -m pytest tests/slurm/test_kills.py --kills $(KILLS) $(ARGS)
	$(ENVIRONMENT) TIDEMARK_KILLS=30 $(PY) -m pytest -s tests/toolkit/training/test_resume.py -k random $(ARGS)

# A study on a real Slurm on this machine under every kind of fault; tests/cluster/README.md says what to install for it.
faults: install-dev
	$(ENVIRONMENT) $(PY) -m pytest tests/slurm/test_faults.py --faults $(FAULTS) $(ARGS)
