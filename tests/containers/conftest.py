"""The engine, the image and the volume of the container tests; `make test-containers` runs them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from container_engine import Engine

ROOT = Path(__file__).parents[2]
LOCKS = ["sidecar/requirements.txt", "sidecar/requirements-build.txt"]
WHEELS = "build/wheels"
BASE_PYTHON = "3.11"
"""Of the base image that `scripts/with-containers` makes."""

if "SHAREDVOL_TEST_ENGINE" not in os.environ:
    collect_ignore_glob = ["test_*.py"]  # `make test` has no engine


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    engine = Engine(os.environ["SHAREDVOL_TEST_ENGINE"])
    yield engine
    engine.clean_up()


@pytest.fixture(scope="session")
def image(engine: Engine) -> Iterator[str]:
    """Dockerfile.sidecar, built: as a user builds it, or on the machine's own base without a registry."""
    tag = f"sharedvol-sidecar-test:{engine.label[-12:]}"
    base = os.environ["SHAREDVOL_TEST_BASE"]
    arguments = [f"--build-arg=BASE={base}", f"--build-arg=WHEELS={WHEELS}"] if base else []
    if base:
        _download_wheels()
    engine.call("build", "-f", str(ROOT / "Dockerfile.sidecar"), "-t", tag, *arguments, str(ROOT), seconds=600)
    yield tag
    engine.clean_up()  # what still uses it
    engine.call("rmi", "-f", tag)


def _download_wheels() -> None:
    """Out here pip has the machine's own settings, which are none of the image's business."""
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--require-hashes", "--only-binary=:all:"]
    command += [f"--python-version={BASE_PYTHON}", f"--dest={WHEELS}"]
    subprocess.run([*command, *(f"-r{lock}" for lock in LOCKS)], cwd=ROOT, check=True, timeout=300)


@pytest.fixture
def volume(engine: Engine) -> str:
    """The name of a new, empty volume."""
    return engine.text("volume", "create", f"--label={engine.label}")
