"""Make the indexes that a catalog lacks, while the caller reports that it lives."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from typing import Final

import sqlalchemy as sa

from sharedvol_sidecar.catalog.schema import add_index, collected

LONGEST: Final = 600
"""Seconds to wait for a server's answer: it reads all rows."""

_LOCK_WAIT = 5  # seconds
_BEAT = 1.0
_TURN = 0.3  # seconds between two indexes in which writers that wait for SQLite's lock get it


def _prepare(connection: sa.Connection) -> None:
    """Let other processes wait as little as can be."""
    if connection.dialect.name == "sqlite":
        # What is read before is in memory while SQLite locks the file; and an index needs no sync before others write.
        connection.exec_driver_sql(f"SELECT SUM(LENGTH(path)) FROM {collected.name} NOT INDEXED").fetchall()
        connection.exec_driver_sql("PRAGMA synchronous = NORMAL")
    else:
        # A transaction that was left open makes this statement wait, and all others after it.
        connection.exec_driver_sql(f"SET SESSION lock_wait_timeout = {_LOCK_WAIT}")


def add_indexes(engine: sa.Engine, names: Iterable[str], progress: Callable[[], object]) -> None:
    """Make indexes on a thread and a connection of their own.

    Args:
        engine: makes the connection.
        names: of the indexes.
        progress: called about once a second; where it returns a true value, the thread is not waited for any longer.

    Raises:
        sqlalchemy.exc.SQLAlchemyError: an index cannot be made. Those before it stay.
    """
    failed: list[Exception] = []

    def work() -> None:
        try:
            for name in names:
                with engine.connect() as connection:
                    _prepare(connection)
                    add_index(connection, name)
                time.sleep(_TURN)
        except Exception as error:
            failed.append(error)

    # A daemon: the process may end meanwhile, and then the database undoes what was begun.
    thread = threading.Thread(target=work, name="sharedvol-index", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(_BEAT)
        if progress():
            return
    if failed:
        raise failed[0]
