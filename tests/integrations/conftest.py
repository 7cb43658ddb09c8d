"""Fixtures of the tests with web servers."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.integrations.lowest import lowest
from support.integrations.served import Place


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """A directory for one replica."""
    return Place(tmp_path)


@pytest.fixture(params=["lowest", "newest"])
def each_uvicorn(request: pytest.FixtureRequest, place: Place) -> None:
    """Run the test with the oldest uvicorn that we support, and with the installed one."""
    if request.param == "lowest":
        place.packages = (lowest("uvicorn"),)
