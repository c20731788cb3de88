# Everything a developer does, each in one command on a fresh Debian or Ubuntu
# machine with Python (3.11 or newer) and gcc:
#
#	make run		a cluster in ./australis-data, in the foreground
#	make test		all tests
#	make check		formatting, lint, types, warnings of the C compiler
#	make bench		side by side with stock PostgreSQL
#	make simulate		a cluster under virtual time and faults, SEEDS=N of them
#	make clean		forget what was built
#
# ARGUMENTS="--port 5433" goes to the command behind a target, DATA=DIR names
# the cluster's directory, TESTS=tests/unit chooses tests; all of them run two
# files at once, JOBS=0 one after the other.
#
# What holds: nothing is installed outside .venv, except python3-venv and
# python3-dev when they are missing and we are root. Sources are used in place:
# after a change of C code the next command compiles it again.

SHELL := /bin/bash
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { command -v $$p; break; }; done)
BIN := .venv/bin
BUILT := $(wildcard postgres/*.c postgres/*.h postgres/*.sql postgres/cflags native/*.c native/*.h) \
	pyproject.toml setup.py src/australis/build_extension.py
TESTS ?= tests
JOBS ?= $(if $(filter tests,$(TESTS)),2,0)
SEEDS ?= 1000
DATA ?=
CODE := src tests setup.py

.PHONY: run test check bench simulate clean

run: .venv/installed
	$(BIN)/australis start $(if $(DATA),--data "$(DATA)") $(ARGUMENTS)

test: .venv/tested
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile $(TESTS) $(ARGUMENTS)

check: .venv/tested
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/ruff check $(CODE)
	$(BIN)/mypy src tests
	$(MAKE) --no-print-directory -C postgres BUILD="$(CURDIR)/build/check" OUT="$(CURDIR)/build/check" \
		EXTRA_CFLAGS=-Werror PYTHON="$(CURDIR)/$(BIN)/python"

bench: .venv/benched
	$(BIN)/australis bench $(ARGUMENTS)

simulate: .venv/installed
	$(BIN)/python -m australis.simulation --seeds $(SEEDS) $(ARGUMENTS)

clean:
	rm -rf build .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis src/*.egg-info src/australis/_native*.so \
		src/australis/postgres
	find . -name __pycache__ -prune -exec rm -rf {} +

.venv/bin/python:
	@if [ -z "$(PYTHON)" ]; then echo "error: no Python 3.11 or newer; install python3" >&2; exit 1; fi
	@if ! command -v gcc >/dev/null; then echo "error: no C compiler; install gcc" >&2; exit 1; fi
	@if ! $(PYTHON) -c 'import ensurepip, sysconfig, os; \
		assert os.path.exists(sysconfig.get_path("include") + "/Python.h")' 2>/dev/null; then \
		if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
			apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq python3-venv python3-dev; \
		else echo "error: Python lacks venv or its headers; install python3-venv and python3-dev" >&2; exit 1; fi; fi
	$(PYTHON) -m venv .venv

# pip's own words only when it fails: an install prints a hundred lines that nobody needs
.venv/installed: $(BUILT) | .venv/bin/python
	$(BIN)/pip install --quiet --disable-pip-version-check --editable .
	@touch $@

.venv/tested: $(BUILT) | .venv/bin/python
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[test]'
	@$(BIN)/python -c 'import moto' 2>/dev/null || \
		$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[test,test-s3]' || \
		echo "no local S3 server (moto): tests of S3 are skipped" >&2
	@touch .venv/installed $@

.venv/benched: $(BUILT) | .venv/bin/python
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[bench]'
	@touch .venv/installed $@
