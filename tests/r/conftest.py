"""The helpers of the library's tests are those of R's too; and the R processes that tests share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.r.rprocess import R


@pytest.fixture(scope="module")
def shared_r() -> Iterator[R]:
    """An R process that the tests of a module share: leave nothing held in it."""
    with R() as process:
        yield process


@pytest.fixture
def start_r(tmp_path: Path) -> Iterator[Callable[[], R]]:
    """Starts an R process of the test's own, with ``tmp_path`` as its working directory."""
    started: list[R] = []

    def start() -> R:
        started.append(R(cwd=tmp_path))
        return started[-1]

    yield start
    for process in started:
        process.close()


@pytest.fixture
def r(start_r: Callable[[], R]) -> R:
    """An R process of the test's own."""
    return start_r()
