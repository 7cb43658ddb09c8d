"""The release before, next to this one."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from support.counted import POINTS
from support.soak.releases import HERE, Release
from support.torture.layouts import Directories, directories
from support.upgrade.release_agent import Agent

WHEEL = Path(__file__).with_name("sharedvol-0.1.0-py3-none-any.whl")

BOTH_WAYS = [("before", "here"), ("here", "before")]
"""Which release acts first, and which continues."""


@pytest.fixture(scope="session")
def releases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Release]:
    """The release before and this one, by name."""
    directory = tmp_path_factory.mktemp("before")
    with zipfile.ZipFile(WHEEL) as wheel:
        wheel.extractall(directory)
    return {"before": Release("before", directory), "here": HERE}


@pytest.fixture(params=BOTH_WAYS, ids="-then-".join)
def pair(request: pytest.FixtureRequest, releases: dict[str, Release]) -> tuple[Release, Release]:
    """The release that acts first, and the one that continues: each of the two orders."""
    first, second = request.param
    return releases[first], releases[second]


@pytest.fixture
def start() -> Iterator[Callable[[Release], Agent]]:
    """Start processes of a release, which end with the test."""
    with ExitStack() as stack:
        yield lambda release, **environment: stack.enter_context(Agent(release, **environment))


@pytest.fixture
def torture(tmp_path: Path) -> Iterator[Directories]:
    """Where volumes are whose movers are killed."""
    yield from directories(tmp_path)


@pytest.fixture
def points(record_property: Callable[[str, object], None]) -> Callable[[str, int], None]:
    """Count points of a kind for the summary at the end of the run."""
    return lambda kind, number: record_property(POINTS + kind, number)
