"""The helpers of the library's tests are the sidecar's too; and the fixtures of the sidecar's tests."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.counted import POINTS
from support.sidecar.interleaving import Sidecar, Writer
from support.sidecar.volume import Volume
from support.torture.layouts import Directories, directories

from sharedvol import NotLockedError
from sharedvol_sidecar.collect.collector import Collector

_MEMORY = Path("/dev/shm")


@pytest.fixture
def volume(tmp_path: Path) -> Volume:
    return Volume(tmp_path / "spool", tmp_path / "collected")


@pytest.fixture
def other_file_system(tmp_path: Path) -> Iterator[Path]:
    """A directory on another file system than ``tmp_path``."""
    if not _MEMORY.is_dir() or _MEMORY.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("no second file system here")
    with tempfile.TemporaryDirectory(dir=_MEMORY, prefix="sharedvol-test-") as path:
        yield Path(path)


@pytest.fixture
def across(tmp_path: Path, other_file_system: Path) -> Volume:
    """A volume whose destination is on another file system."""
    return Volume(tmp_path / "spool", other_file_system / "collected")


@pytest.fixture
def log(volume: Volume) -> Iterator[Writer]:
    """A log of the container ``c1`` that is open."""
    writer = Writer(volume.spool / "c1" / "logs" / "app.log")
    yield writer
    writer.close()


@pytest.fixture
def sidecar(volume: Volume) -> Iterator[Sidecar]:
    """Makes sidecars, which are closed at the end."""
    made: list[Collector] = []

    def make(**changes: object) -> Collector:
        made.append(volume.collector(**changes))
        return made[-1]

    yield make
    for collector in made:
        with contextlib.suppress(NotLockedError):  # closed already
            collector.close()


@pytest.fixture
def torture(tmp_path: Path) -> Iterator[Directories]:
    """Where the torture's volumes lie."""
    yield from directories(tmp_path)


@pytest.fixture
def points(record_property: Callable[[str, object], None]) -> Callable[[str, int], None]:
    """Count points of a kind for the summary at the end of the run."""

    def count(kind: str, number: int) -> None:
        record_property(POINTS + kind, number)
        print(f"{number:,} {kind}")

    return count
