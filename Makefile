# Everything a person runs. `make demo` and `make test` need only Python 3.11, make and a C compiler.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV := $(BIN)/uv pip install --quiet --python $(BIN)/python
SEEDS ?= 20

.PHONY: help setup setup-dev demo test kernels check lint types imports sim e2e browser reference pictures screenshot pins clean

help:  ## Show this list.
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(VENV)/.uv: requirements/run.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$$(grep '^uv==' requirements/run.txt)"
	@touch $@

$(VENV)/.run: $(VENV)/.uv requirements/run.txt pyproject.toml
	$(UV) -r requirements/run.txt
	$(UV) --no-deps --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.run requirements/dev.txt
	$(UV) -r requirements/dev.txt
	@touch $@

setup: $(VENV)/.run  ## Make .venv with the `roost` command, pinned, without development tools.
setup-dev: $(VENV)/.dev  ## The same with the development tools.

demo: setup  ## The main job, end to end, on this machine (KEEP=1 keeps it up).
	@$(BIN)/roost demo $(if $(KEEP),--keep)

test: setup-dev lint types imports  ## Everything: checks, unit, contract, simulator, real processes, browser.
	$(BIN)/pytest

kernels: setup-dev  ## The session engine's tests on every Python that kernels run on (3.11, 3.12, 3.13).
	ROOST_TEST_PYTHONS=$$($(BIN)/python tools/kernels.py) $(BIN)/pytest tests/unit/runtime

FAST := tests/tidy tests/contract/test_store.py $(addprefix tests/unit/,kit store metering market fleet notebooks gateway notices)

check: setup-dev lint types imports  ## The fast loop, under a minute: checks, pure tests, 20 simulator seeds beside them.
	@$(BIN)/python -m roost.main.simulate --seeds $(SEEDS) --hours 0.05 & simulation=$$!; \
		$(BIN)/pytest -m "not e2e" -x $(FAST) && wait $$simulation

lint: setup-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: setup-dev
	$(BIN)/mypy

imports: setup-dev
	$(BIN)/lint-imports --no-logo

sim: setup-dev  ## Run SEEDS=N simulator seeds.
	$(BIN)/python -m roost.main.simulate --seeds $(SEEDS)

e2e: setup-dev
	$(BIN)/pytest -m e2e

browser: setup-dev
	$(BIN)/pytest -m browser

reference: setup-dev  ## Write docs/reference.md again.
	$(BIN)/python tools/reference.py

pictures: setup  ## Draw the pictures of the market again (docs/images/market.png, crossover.png).
	ROOST_STATE_DIR=$$(mktemp -d) $(BIN)/roost market picture docs/images/market.png --vcpus 4 --memory 16
	ROOST_STATE_DIR=$$(mktemp -d) $(BIN)/roost market purchase gcp/us-central1-a/n2-standard-4 \
		--instances 10 --hours-a-day 10 --days-a-week 5 --always 4 --months 36 \
		--chart docs/images/crossover.png

screenshot: setup-dev  ## Take the picture of the README in a real browser.
	ROOST_SCREENSHOTS=docs/images $(BIN)/pytest -m browser

pins: setup-dev  ## Pin the newest versions of everything again.
	$(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 --no-header --no-annotate \
		--no-emit-index-url --no-emit-find-links requirements/run.in -o requirements/run.txt
	$(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 --no-header --no-annotate \
		--no-emit-index-url --no-emit-find-links -c requirements/run.txt requirements/dev.in -o requirements/dev.txt

clean:
	rm -rf $(VENV) .venv-kernels .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
