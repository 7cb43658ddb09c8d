"""The sidecar's image is replaced by another release's, there and back, while replicas write."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import tqdm
from support.containers.compose_images import IMAGES, ROOT, build_image
from support.containers.container_engine import Engine
from support.containers.container_fleet import Fleet
from support.containers.container_judge import faults

pytestmark = pytest.mark.timeout(300)

WHEEL = ROOT / "tests/upgrade/sharedvol-0.1.0-py3-none-any.whl"


@pytest.fixture(scope="module")
def image_before(engine: Engine, image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The image with the release before, and with tqdm, which that release needs."""
    context = tmp_path_factory.mktemp("before")
    shutil.copy(WHEEL, context)
    shutil.copytree(Path(tqdm.__file__).parent, context / "tqdm")
    tag = build_image(engine, "before", IMAGES / "sidecar-before.Dockerfile", context, f"--build-arg=IMAGE={image}")
    yield tag
    engine.clean_up()
    engine.call("rmi", "-f", tag)


def test_nothing_is_lost_or_doubled_when_images_are_rolled_forth_and_back(
    engine: Engine, image: str, image_before: str, volume: str
) -> None:
    """The old sidecar ends before the new one starts, as with `docker compose up -d`; sometimes it is killed."""
    fleet = Fleet(engine, image_before, volume, replicas=2, sidecars=1)
    for release, replace in [
        (image, fleet.stop_and_recreate),
        (image_before, fleet.kill_and_recreate),
        (image, fleet.kill_and_recreate),
        (image_before, fleet.stop_and_recreate),
        (image, fleet.stop_and_recreate),
    ]:
        fleet.image = release
        replace()
    outcome = fleet.finish()
    assert faults(outcome.replicas, outcome.files, outcome.killed) == []
    assert outcome.summary["failed"] == 0
    engine.run(f"--volume={volume}:/vol", image, "verify")  # exits with 1 if anything is wrong


def test_the_image_before_has_the_release_before(engine: Engine, image: str, image_before: str) -> None:
    """Otherwise the other test would prove nothing."""
    source = "import importlib.util; print(importlib.util.find_spec('sharedvol_sidecar.spool') is not None)"
    found = [engine.run("--entrypoint=python", one, "-c", source) for one in (image_before, image)]
    assert found == [b"False\n", b"True\n"]
