# Begin with `make demo`, which shows the sidecar at work, and `make check`, which runs linters and fast tests.
# Each target works on a fresh Debian machine with Python 3.11 or newer and make.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Half of the time a test waits for another process: two tests for each core.
PYTEST_FLAGS ?= -n $(shell expr 2 '*' $$(nproc))

FAST := core publish cache volume logs lint cli

.PHONY: demo check test test-containers torture soak lint bench docs lock format clean help

help: ## show the targets
	@awk -F ':.*## ' '/^[a-z%-]+:.*## /{printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(READY) ## replicas write, two sidecars collect, one is killed: nothing is lost
	@$(BIN)/sharedvol-sidecar demo

check: lint ## the linters and the fast tests, in under a minute
	$(BIN)/pytest $(PYTEST_FLAGS) -q -m "not slow and not server and not torture" $(FAST:%=tests/%)

test: $(READY) ## every test
	@sh scripts/install-servers
	@sh scripts/install-redis
	@sh scripts/install-chromium
	@sh scripts/install-filesystems
	@sh scripts/install-r
	$(BIN)/pytest $(PYTEST_FLAGS)

test-%: $(READY) ## the tests of one folder, such as test-locks
	$(BIN)/pytest $(PYTEST_FLAGS) tests/$*

test-containers: $(READY) ## the sidecar's image, built and run: containers are killed, nothing is lost
	@sh scripts/with-containers $(BIN)/pytest tests/containers

torture: $(READY) ## kill, fail and cut the power at every step of a migration and of a move (two hours)
	@sh scripts/install-servers
	@sh scripts/install-filesystems nfs
	SHAREDVOL_TEST_KILLS=all SHAREDVOL_TORTURE=all $(BIN)/pytest $(PYTEST_FLAGS) \
		tests/migrations/test_migrations_kill.py tests/sidecar/torture \
		tests/sidecar/service/test_sidecar_service_leaks.py tests/doctor/test_network_torture_nfs.py

soak: $(READY) ## replicas and sidecars under faults, every record counted (30 minutes; SHAREDVOL_SOAK_SECONDS, _SEED, _MODES)
	@sh scripts/install-filesystems
	@PYTHONPATH=tests $(BIN)/python -P -m support.soak

lint: $(READY) ## style, types and English
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/codespell
	$(BIN)/python scripts/check_english.py

bench: $(READY) ## compare with peers and with the targets, and write docs/benchmarks.md (12 minutes)
	@sh scripts/install-servers
	@sh scripts/install-bench-tools
	$(BIN)/python -m bench

docs: $(READY) ## the documentation as a site, in build/docs; a warning is an error
	$(BIN)/sphinx-build -q -n -W --keep-going -b html docs build/docs
	@echo "open build/docs/index.html"

lock: $(READY) ## pin what the sidecar's image installs (LOCK_FLAGS=--upgrade: the newest)
	@sh scripts/lock $(BIN)/python $(LOCK_FLAGS)

format: $(READY) ## rewrite in the house style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove what the targets made
	rm -rf $(VENV) .hypothesis .mypy_cache .pytest_cache .ruff_cache dist build

$(READY): pyproject.toml Makefile scripts/make-venv
	@sh scripts/make-venv "$(PYTHON)" "$(VENV)"
	@touch $(READY)
