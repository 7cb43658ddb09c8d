"""Fixtures of the tests with web servers."""

from __future__ import annotations

from pathlib import Path

import pytest
from served import Place


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """A directory for one replica."""
    return Place(tmp_path)
