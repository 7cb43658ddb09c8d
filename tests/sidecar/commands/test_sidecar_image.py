"""What the sidecar's image is built from goes with pyproject.toml. The image itself: `make test-containers`."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[3]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCKS = {
    "sidecar/requirements.txt": [*PROJECT["project"]["dependencies"], "sharedvol[sidecar]"],
    "sidecar/requirements-build.txt": PROJECT["build-system"]["requires"],
}
PIN = re.compile(r"^([A-Za-z0-9._-]+)==(\S+)((?: ; [^\\]+)?) \\\n((?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)", re.M)


def _wanted(requirements: list[str]) -> Iterator[Requirement]:
    """The requirements, with this project's own extras taken apart."""
    for text in requirements:
        requirement = Requirement(text)
        if requirement.name != "sharedvol":
            yield requirement
            continue
        for extra in requirement.extras:
            yield from _wanted(PROJECT["project"]["optional-dependencies"][extra])


@pytest.mark.parametrize("lock", LOCKS)
def test_the_lock_pins_all_that_is_required(lock: str) -> None:
    pinned = {canonicalize_name(name): version for name, version, *_ in PIN.findall((ROOT / lock).read_text())}
    wanted = list(_wanted(LOCKS[lock]))
    assert wanted
    for requirement in wanted:
        version = pinned.get(canonicalize_name(requirement.name))
        assert version is not None, f"{lock} lacks {requirement.name}: run 'make lock'"
        assert requirement.specifier.contains(version, prereleases=True), f"{requirement}: run 'make lock'"


@pytest.mark.parametrize("lock", LOCKS)
def test_the_lock_holds_hashed_pins_and_no_address(lock: str) -> None:
    text = (ROOT / lock).read_text()
    rest = re.sub(r"^ *#.*\n", "", PIN.sub("", text), flags=re.M)
    assert rest.strip() == "", "neither a pin with its hashes nor a comment"
    assert "://" not in text


def test_the_image_is_labelled_with_the_version_of_the_project() -> None:
    text = (ROOT / "Dockerfile.sidecar").read_text()
    assert re.findall(r"^ARG VERSION=(.*)$", text, re.M) == [PROJECT["project"]["version"]]
