# Two commands: `make demo` shows the main job, `make test` runs every test.
# Each target works on a fresh Debian machine with Python 3.11 or newer and make.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PYTEST_FLAGS ?= -n auto

.PHONY: demo test test-containers torture soak lint bench docs lock format clean help

help: ## show the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(READY) ## replicas write, two sidecars collect, one is killed: nothing is lost
	@$(BIN)/sharedvol-sidecar demo

test: $(READY) ## every test
	@sh scripts/install-servers
	@sh scripts/install-redis
	@sh scripts/install-chromium
	@sh scripts/install-filesystems
	@sh scripts/install-r
	$(BIN)/pytest $(PYTEST_FLAGS)

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

lint: $(READY) ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY) ## measure beside peers and against the targets, and write docs/benchmarks.md (12 minutes)
	@sh scripts/install-servers
	@sh scripts/install-bench-tools
	$(BIN)/python -m bench

docs: $(READY) ## the documentation as a site, in build/docs; a warning is an error
	$(BIN)/sphinx-build -q -n -W --keep-going -b html docs build/docs
	@echo "open build/docs/index.html"

lock: $(READY) ## pin anew what the sidecar's image installs (LOCK_FLAGS=--upgrade: the newest)
	@sh scripts/lock $(BIN)/python $(LOCK_FLAGS)

format: $(READY) ## rewrite in the house style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove what the targets made
	rm -rf $(VENV) .hypothesis .mypy_cache .pytest_cache .ruff_cache dist build

$(READY): pyproject.toml Makefile scripts/make-venv
	@sh scripts/make-venv "$(PYTHON)" "$(VENV)"
	@touch $(READY)
