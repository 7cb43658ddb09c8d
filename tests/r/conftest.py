"""R processes that tests share: to start one costs half a second."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from rmigrations import Replica


@pytest.fixture(scope="module")
def replica() -> Iterator[Replica]:
    """An R replica, to migrate one database after the other."""
    with Replica() as made:
        yield made


@pytest.fixture(scope="module")
def replica_in_c() -> Iterator[Replica]:
    """One whose locale knows nothing beyond ASCII, as in a bare container."""
    with Replica(LC_ALL="C") as made:
        yield made
