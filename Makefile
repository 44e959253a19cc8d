# Two commands do all on a fresh machine: `make up` and `make test`. They need python3 (3.11 or newer) and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
export HEADWATER_MODELS__DIRECTORY ?= $(CURDIR)/data/models
TEST_MODELS := smollm2-135m-instruct qwen2.5-coder-0.5b-instruct

.PHONY: help up test test-unit test-whole check unit models apt docs lock bench bench-engine bench-prefix bench-ledger gate gate-fair clean

help:  ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

up: $(VENV)/.installed  ## start the platform here: model, API, first key, first answer; Ctrl-C stops it
	@$(BIN)/headwater up

test: $(VENV)/.developed apt models check  ## everything CI runs: format, lint, types, all tests with coverage
	@rm -f .coverage .coverage.*
ifeq ($(ARGS),)
	@# The unit tests keep one core busy; the acceptance tests beside them mostly wait for engines. Jobs of make and not of
	@# the shell, which would have them ignore Ctrl-C.
	@$(MAKE) --no-print-directory -k -j2 test-unit test-whole; status=$$?; cat .unit.log; exit $$status
else
	$(BIN)/coverage run -m pytest $(ARGS)
endif
	@$(BIN)/coverage combine --quiet && $(BIN)/coverage report

test-unit:
	@$(BIN)/coverage run -m pytest tests/unit > .unit.log 2>&1

test-whole:
	@$(BIN)/coverage run -m pytest tests/acceptance tests/integration

check: $(VENV)/.developed  ## format, lint and types only
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

unit: $(VENV)/.developed  ## the quick tests
	$(BIN)/python -m pytest tests/unit -m "not model" $(ARGS)

models: $(VENV)/.installed  ## fetch the models that the tests use
	@for name in $(TEST_MODELS); do $(BIN)/headwater models pull $$name || exit 1; done

apt:  ## install the system programs that the tests use
	@sh tests/apt.sh

docs: $(VENV)/.developed  ## write the generated reference pages anew
	$(BIN)/python -m headwater.settings.reference > docs/reference/settings.md
	$(BIN)/python -m headwater.dialects.reference > docs/reference/chat-completions.md
	$(BIN)/python -m headwater.errors_reference > docs/reference/errors.md
	$(BIN)/python -m headwater.cli.reference > docs/reference/cli.md

lock: $(VENV)/.developed  ## resolve the requirements anew, with hashes
	$(BIN)/python -m uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-header --python-version 3.11 --upgrade pyproject.toml -o requirements/core.txt
	$(BIN)/python -m uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-header --python-version 3.11 --upgrade pyproject.toml --extra llamacpp -o requirements/llamacpp.txt
	$(BIN)/python -m uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-header --python-version 3.11 --upgrade pyproject.toml --extra llamacpp --group dev -o requirements/dev.txt
	$(BIN)/python -m uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-header --python-version 3.11 --upgrade requirements/build.in -o requirements/build.txt

bench: $(VENV)/.developed  ## the gateway's cost beside its peers (about 15 minutes on a quiet machine)
	$(BIN)/python -m bench.gateway $(ARGS)
	$(BIN)/python -m bench.readme

bench-engine: $(VENV)/.developed models  ## the engine through the gateway beside the bare engine
	$(BIN)/python -m bench.engine $(ARGS)

bench-prefix: $(VENV)/.developed models  ## bursts with one long beginning, beside the bare engine (10 to 20 minutes; exit code by the goals)
	$(BIN)/python -m bench.prefix $(ARGS)

bench-ledger: $(VENV)/.developed  ## what a reservation and a settlement cost, empty and with 5 million records
	$(BIN)/python -m bench.ledger $(ARGS)

gate: $(VENV)/.developed apt  ## the long rigs (up to 90 minutes; TEST="t1 t4" for some); results in gate/results
	$(BIN)/python -m gate $(TEST) $(ARGS)

gate-fair: $(VENV)/.developed models  ## whether everybody gets their part (about 10 minutes); result in gate/results/fair.json
	$(BIN)/python -m gate.fair $(ARGS)

clean:  ## remove the environment and caches; data and models stay
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage .coverage.*

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Headwater needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Name another with: make PYTHON=python3.12 …")'
	@echo "Making a virtual environment in $(VENV) …"
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: requirements/llamacpp.txt requirements/build.txt pyproject.toml | $(BIN)/python
	@echo "Installing (hash-checked) …"
	@$(PIP) install --require-hashes -r requirements/build.txt -r requirements/llamacpp.txt
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.developed: requirements/dev.txt $(VENV)/.installed
	@echo "Installing what development needs (hash-checked) …"
	@$(PIP) install --require-hashes -r requirements/dev.txt
	@touch $@
