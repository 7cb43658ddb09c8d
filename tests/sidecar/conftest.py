"""The helpers of the library's tests are the sidecar's too; and the fixtures of the sidecar's tests."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

from volume import Volume

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
