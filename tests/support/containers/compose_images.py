"""The images of the compose tests: the public ones, or, where no registry is reached, built on this machine's own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from support.containers.container_engine import Engine

ROOT = Path(__file__).parents[3]
WHEELS = "build/wheels"
BASE_PYTHON = "3.11"
"""Of the base image that `scripts/with-containers` makes."""
API_LOCKS = ["docs/examples/api/requirements.txt", "sidecar/requirements-build.txt"]
IMAGES = Path(__file__).parents[2] / "containers" / "images"


def download_wheels(locks: Iterable[str]) -> None:
    """Out here pip has the machine's own settings, which are none of the image's business."""
    outside = os.environ.get("SHAREDVOL_TEST_OUTSIDE")  # the tests themselves reach nothing but each other
    command = ["nsenter", f"--net={outside}"] if outside else []
    command += [sys.executable, "-m", "pip", "download", "-qq", "--no-deps", "--require-hashes", "--only-binary=:all:"]
    command += [f"--python-version={BASE_PYTHON}", f"--dest={WHEELS}"]
    subprocess.run([*command, *(f"-r{lock}" for lock in locks)], cwd=ROOT, check=True, timeout=300)


def build_api(engine: Engine) -> str:
    """docs/examples/api/Dockerfile; returns the image's name."""
    base = os.environ["SHAREDVOL_TEST_BASE"]
    if base:
        download_wheels(API_LOCKS)
    arguments = [f"--build-arg=BASE={base}", f"--build-arg=WHEELS={WHEELS}"] if base else []
    return build_image(engine, "jobs-api", ROOT / "docs/examples/api/Dockerfile", ROOT, *arguments)


def build_r_api(engine: Engine) -> str:
    """docs/examples/r-api/Dockerfile."""
    base = os.environ["SHAREDVOL_TEST_R_BASE"]
    arguments = [f"--build-arg=BASE={base}"] if base else []
    return build_image(engine, "jobs-api-r", ROOT / "docs/examples/r-api/Dockerfile", ROOT, *arguments)


def build_traefik(engine: Engine, directory: Path) -> str:
    """The public image, or PyPI's binary on the base; ``directory`` is for the build's context."""
    if not os.environ["SHAREDVOL_TEST_BASE"]:
        return "traefik:v3.7"
    shutil.copy2(Path(sys.executable).parent / "traefik", directory / "traefik")
    base = f"--build-arg=BASE={os.environ['SHAREDVOL_TEST_BASE']}"
    return build_image(engine, "traefik", IMAGES / "traefik.Dockerfile", directory, base)


def build_mysql(engine: Engine) -> str:
    """The public image, or Debian's MySQL under an entry point like its own."""
    if not os.environ["SHAREDVOL_TEST_BASE"]:
        return "mysql:8.4"
    base = os.environ["SHAREDVOL_TEST_MYSQL_BASE"]
    assert base, "no MySQL on this machine: scripts/install-servers says why"
    return build_image(engine, "mysql", IMAGES / "mysql.Dockerfile", IMAGES, f"--build-arg=BASE={base}")


def build_image(engine: Engine, name: str, file: Path, context: Path, *arguments: str) -> str:
    """Build an image of the tests; returns its name."""
    tag = f"localhost/sharedvol-test-{name}:{engine.label[-12:]}"
    engine.call("build", "-f", str(file), "-t", tag, *arguments, str(context), seconds=600)
    return tag
