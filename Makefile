# Two commands: `make train` and `make test`. Each makes .venv and installs what it needs, once.
#
#   make train [DATA=path] [CONFIG=file] [RUN=dir] [ARGS="key=value ..."]
#   make test       everything that must pass; says at its end which tests were skipped, and why
#   make test-quick the tests that start no process and compute for no second, for the inner loop
#   make setup      only .venv        make check     only lint, format and types        make clean     remove .venv
#   make audit      known vulnerabilities of all that is installed, asked of the Python package index

PYTHON ?= python3
CONFIG ?= configs/quickstart.yaml
RUN    ?= runs/$(notdir $(basename $(CONFIG)))-$(shell date +%Y%m%d-%H%M%S)
DATA   ?=
ARGS   ?=

BIN := .venv/bin

# A file's tests share what they set up, so each file goes to one worker. `test` has more workers than two cores, since many of
# its tests wait; those of `test-quick` do not.
PYTEST := $(BIN)/python -m pytest --dist loadfile --no-loadscope-reorder

.PHONY: train test test-quick check audit setup clean

train: .venv/installed
	@$(BIN)/vgg-ddp train $(CONFIG) "run.dir=$(RUN)" $(if $(DATA),"data.source=$(DATA)") $(ARGS)

test: check
	@echo "== tests"
	@$(PYTEST) --numprocesses 5
	@if nvidia-smi > /dev/null 2>&1; then echo "== tests of the GPU"; $(BIN)/python -m pytest tests/gpu; fi

test-quick: .venv/installed-dev
	@$(PYTEST) --numprocesses 2 -q -m "not processes and not host and not slow and not seconds"

check: .venv/installed-dev
	@echo "== lint, format, types"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

# In an environment of its own, so that it scans what the project installs and nothing else; --strict: what cannot be
# looked up is an error, and not taken for safe.
audit: .venv/installed-dev
	@echo "== known vulnerabilities"
	@$(PYTHON) -m venv .venv/audit && .venv/audit/bin/pip install --quiet --disable-pip-version-check pip-audit
	@$(BIN)/pip list --format=freeze --exclude-editable > .venv/audit/installed.txt
	@.venv/audit/bin/pip-audit --strict --no-deps --disable-pip --requirement .venv/audit/installed.txt

setup: .venv/installed

.venv/installed: setup.py constraints.txt
	@echo "== making .venv with $(PYTHON) and installing torch, DALI and the rest: about 5 GB, some minutes, once"
	@$(PYTHON) -m venv .venv
	@$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dali]"
	@touch $@

.venv/installed-dev: .venv/installed
	@echo "== installing the development tools, once"
	@$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dali,deepspeed,wandb,tensorboard,export,dev]"
	@touch $@

clean:
	rm -rf .venv build *.egg-info
