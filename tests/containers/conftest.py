"""The engine, the image and the volume of the container tests; `make test-containers` runs them."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from support.containers.compose_images import ROOT, WHEELS, build_api, build_mysql, build_traefik, download_wheels
from support.containers.container_engine import Engine

LOCKS = ["sidecar/requirements.txt", "sidecar/requirements-build.txt"]

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
        download_wheels(LOCKS)
    engine.call("build", "-f", str(ROOT / "Dockerfile.sidecar"), "-t", tag, *arguments, str(ROOT), seconds=600)
    yield tag
    engine.clean_up()  # what still uses it
    engine.call("rmi", "-f", tag)


@pytest.fixture(scope="session")
def compose_images(engine: Engine, image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The variables of docs/examples/compose that name the images, all of which are there when this is."""
    built = {
        "SIDECAR_IMAGE": image if "/" in image else f"localhost/{image}" if engine.command == "podman" else image,
        "API_IMAGE": build_api(engine),
        "TRAEFIK_IMAGE": build_traefik(engine, tmp_path_factory.mktemp("traefik")),
        "DB_IMAGE": build_mysql(engine),
    }
    yield built
    mine = [name for name in built.values() if name.startswith("localhost/sharedvol-test-")]
    engine.call("rmi", "-f", *mine)


@pytest.fixture
def volume(engine: Engine) -> str:
    """The name of a new, empty volume."""
    return engine.text("volume", "create", f"--label={engine.label}")
