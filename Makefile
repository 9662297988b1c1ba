# ptm: what a person types. Wants python3 (3.11 or newer, with venv) and make; the rest goes into .venv, with hashes checked.
# ARGS="…" is handed on: make demo ARGS="--help", make test ARGS="-k store -x".

PYTHON ?= python3
ARGS ?=
UV ?= uv==0.13.9

BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input --quiet
COMPILE := build/lock/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-header --no-annotate

.PHONY: demo vertical test unit lint lock bench soak soak-party screenshots clean

demo: .venv/demo.stamp
	$(BIN)/ptm demo $(ARGS)

# The trusted party's example: examples/vertical/README.md.
vertical: .venv/demo.stamp
	$(BIN)/python -m examples.vertical $(ARGS)

# Much of a test is waiting for servers, so three files at a time; ARGS="-n 0" for one, to debug.
test: .venv/dev.stamp
	$(BIN)/python -m pytest -n 3 --dist loadfile $(ARGS)

# What takes no whole run, no server and no waiting: under a minute.
unit: .venv/dev.stamp
	$(BIN)/python -m pytest -n 3 --dist loadfile -m "not slow" $(ARGS)

lint: .venv/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Takes the pictures of docs/console.md anew, in a real browser beside a real node.
screenshots: .venv/dev.stamp
	PTM_SCREENSHOTS=docs PTM_REQUIRE=chromium $(BIN)/python -m pytest tests/e2e/test_console_browser.py $(ARGS)

bench: .venv/dev.stamp
	$(BIN)/python -m bench $(ARGS)

soak: .venv/dev.stamp
	$(BIN)/python -m bench.soak $(ARGS)

soak-party: .venv/dev.stamp
	$(BIN)/python -m bench.kills $(ARGS)

# Writes both lock files anew, with the newest versions that pyproject.toml allows. hatchling and editables are what installing ptm itself takes.
lock:
	$(PYTHON) -m venv build/lock
	build/lock/bin/python -m pip install --disable-pip-version-check --quiet '$(UV)'
	printf 'hatchling>=1.27\neditables>=0.5\n' > build/lock/build.in
	$(COMPILE) --upgrade --extra demo --output-file requirements.lock pyproject.toml build/lock/build.in
	$(COMPILE) --upgrade --extra demo --extra dev --constraint requirements.lock \
		--output-file requirements-dev.lock pyproject.toml build/lock/build.in

clean:
	rm -rf .venv build dist demo-out demo-out-* .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -path ./.git -prune -o -name __pycache__ -type d -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "make: error: $(PYTHON) is missing or older than 3.11" >&2; \
		echo "make: hint: install Python 3.11 or newer, or name one: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "make: error: $(PYTHON) cannot make virtual environments" >&2; \
		echo "make: hint: on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	@echo "make: installing into .venv (once; a minute or so)"
	@$(PYTHON) -m venv .venv || { rm -rf .venv; exit 1; }

.venv/demo.stamp: $(BIN)/python requirements.lock pyproject.toml
	@$(PIP) install --require-hashes -r requirements.lock
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

# The development set holds the demo's, so one installation serves both.
.venv/dev.stamp: $(BIN)/python requirements-dev.lock pyproject.toml
	@$(PIP) install --require-hashes -r requirements-dev.lock
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@touch .venv/demo.stamp $@
