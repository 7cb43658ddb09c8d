"""The helpers of the library's tests serve here, too."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.servers import Database, Server
from support.traefik.api_replica import Mounts
from support.traefik.traefik_proxy import Traefik
from support.traefik.traefik_stub import Stub


@pytest.fixture(scope="session")
def traefik(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Traefik]:
    """A Traefik that tests share: each begins with `Traefik.serve`."""
    with Traefik(tmp_path_factory.mktemp("traefik")) as running:
        yield running


@pytest.fixture
def database(_server_of: Callable[[str], Server]) -> Iterator[Database]:
    """An empty one on MariaDB."""
    server = _server_of("mariadb")
    made = Database(server, server.create_database())
    yield made
    made.drop()


@pytest.fixture
def mounts(database: Database, tmp_path: Path) -> Mounts:
    """What replicas share: that database, and empty volumes."""
    made = Mounts(database.url, tmp_path)
    made.make()
    return made


@pytest.fixture
def stub() -> Iterator[Callable[[str], Stub]]:
    """Makes small servers, and reaps them."""
    made: list[Stub] = []

    def make(name: str) -> Stub:
        made.append(Stub(name))
        return made[-1]

    try:
        yield make
    finally:
        for one in made:
            one.close()
