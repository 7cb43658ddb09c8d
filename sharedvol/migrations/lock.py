"""The lock that one replica at a time holds while it migrates."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from sharedvol.database.connection import Database
from sharedvol.errors import LockLostError, LockTimeout, MigrationError
from sharedvol.locks.file import FileLock
from sharedvol.locks.mysql import NamedLock
from sharedvol.locks.mysql.lock import Waiting
from sharedvol.locks.mysql.server import LockHolder, Server, inspect
from sharedvol.locks.mysql.token_table import find_holder

LOCK: Final = "sharedvol_migration"
"""The name of the lock within its schema, if no name is given."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class HeldMigrationLock:
    """A lock that is held until `release`.

    Attributes:
        name: its name on the server; None for SQLite.
        server: the server; None for SQLite.
        release: releases it.
    """

    name: str | None
    server: Server | None
    release: Callable[[], object]


class MigrationLock:
    """The lock of a database: ``GET_LOCK`` on its server, or a file next to an SQLite database.

    Args:
        name: a literal name of the lock on the server; None for the schema's own name.
        allow_unsafe: accept a server whose lock may not exclude other replicas.
        on_wait: called now and then while another replica holds it.
    """

    def __init__(self, name: str | None, allow_unsafe: bool, on_wait: Callable[[Waiting], object]) -> None:
        self._name, self._allow_unsafe, self._on_wait = name, allow_unsafe, on_wait

    def acquire(self, database: Database, timeout: float | None) -> HeldMigrationLock:
        """Acquire the lock on this connection.

        Args:
            database: the connection that migrates.
            timeout: seconds to wait; None to wait indefinitely.

        Raises:
            LockTimeout: another replica held it all the time.
            LockUnsafeError: the server's lock would not exclude other replicas.
            MigrationError: it is an SQLite database in memory.
        """
        if database.kind == "sqlite":
            return self._acquire_file(database, timeout)
        lock = NamedLock(
            database,
            self._name or LOCK,
            literal=self._name is not None,
            timeout=timeout,
            allow_unsafe=self._allow_unsafe,
            on_wait=self._on_wait,
        )
        lock.acquire()
        return HeldMigrationLock(lock.name, lock.server, lambda: _release(lock))

    def find_holder(self, database: Database) -> tuple[str | None, LockHolder | None]:
        """Return the lock's name on the server and its holder; None for SQLite."""
        if database.kind != "mysql":
            return None, None
        server = inspect(database)
        name = server.checked(self._name) if self._name else server.scoped(LOCK)
        return name, find_holder(database, server, name)

    def _acquire_file(self, database: Database, timeout: float | None) -> HeldMigrationLock:
        # A file of its own: a process that opens and closes the database's file loses the locks that SQLite has on it.
        path = next((row[2] for row in database.query("PRAGMA database_list") if row[1] == "main"), None)
        if not path:
            raise MigrationError("an SQLite database in memory is lost when its connection ends: name a file")
        lock = FileLock(f"{path}.migration-lock", timeout=timeout)
        try:
            lock.acquire(timeout=0)
        except LockTimeout:
            self._on_wait(Waiting(str(lock.path), None, 0.0, timeout))
            lock.acquire()
        return HeldMigrationLock(None, None, lock.release)


def _release(lock: NamedLock) -> None:
    try:
        lock.release()
    except LockLostError as error:
        # The work is not in doubt, because each write of the ledger checked the lock itself.
        _log.warning("%s", error)
