"""What the tests of all lock engines share: where an engine's lock is, and how to take it from its holder."""

from __future__ import annotations

import secrets
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from sharedvol import Lock, open_lock
from support.named import holder_of, holder_session, wait_until_believed
from support.processes import LIMIT, wait_until
from support.redis_servers import RedisServer
from support.servers import Database

ENGINES = ("file", "mariadb", "mysql", "redis")


class Engine(ABC):
    """One lock, on one engine.

    Attributes:
        url: of the lock, its name included.
    """

    url: str

    def open(self, timeout: float | None = LIMIT, **options: Any) -> Lock:
        """A new object for it."""
        return open_lock(self.url, timeout=timeout, **options)

    @abstractmethod
    def lose(self) -> None:
        """Take the lock from the process that holds it, which is not asked."""


class OnFile(Engine):
    def __init__(self, directory: Path) -> None:
        self.path = directory / "report.lock"
        self.url = f"file://{self.path}"

    def lose(self) -> None:
        self.path.unlink()


class OnDatabase(Engine):
    def __init__(self, database: Database) -> None:
        self.database = database
        self.url = f"{database.url}#report"
        wait_until_believed(database)

    def lose(self) -> None:
        self.database.query(f"KILL {holder_session(self.database)}")
        wait_until(lambda: holder_of(self.database) is None, "the server to free the lock")


class OnRedis(Engine):
    def __init__(self, server: RedisServer) -> None:
        self.server, self.name = server, f"report-{secrets.token_hex(4)}"
        self.url = f"{server.url}#{self.name}"

    def lose(self) -> None:
        with self.server.client() as client:
            ids = [
                each["id"]
                for each in client.client_list(_type="pubsub")
                if each["name"].startswith(f"sharedvol:{self.name}-lock-")
            ]
            assert ids, "nobody has it"
            for each in ids:
                client.client_kill_filter(_id=each)
