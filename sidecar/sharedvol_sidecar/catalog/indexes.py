"""Create missing indexes of a catalog on a thread, while the caller reports that it is alive."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from typing import Final

import sqlalchemy as sa

from sharedvol_sidecar.catalog.schema import add_index, collected

LONGEST: Final = 600
"""Seconds to wait for a server, which reads all rows to create an index."""

_LOCK_WAIT = 5  # seconds
_BEAT = 1.0
_TURN = 0.3  # seconds between two indexes in which writers that wait for SQLite's lock get it


def _prepare(connection: sa.Connection) -> None:
    """Make other processes wait as little as possible."""
    if connection.dialect.name == "sqlite":
        # Rows that were read before are in memory while SQLite locks the file. An index need not be synced at once.
        connection.exec_driver_sql(f"SELECT SUM(LENGTH(path)) FROM {collected.name} NOT INDEXED").fetchall()
        connection.exec_driver_sql("PRAGMA synchronous = NORMAL")
    else:
        # A transaction that was left open makes this statement wait, and all later ones wait for it.
        connection.exec_driver_sql(f"SET SESSION lock_wait_timeout = {_LOCK_WAIT}")


def add_indexes(engine: sa.Engine, names: Iterable[str], progress: Callable[[], object]) -> None:
    """Create indexes on a separate thread and connection.

    Args:
        engine: opens the connection.
        names: the names of the indexes.
        progress: called about once a second. A true value ends the wait for the thread.

    Raises:
        sqlalchemy.exc.SQLAlchemyError: an index cannot be created. Those before it stay.
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

    # A daemon thread, so that the process can end meanwhile. The database then undoes what was begun.
    thread = threading.Thread(target=work, name="sharedvol-index", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(_BEAT)
        if progress():
            return
    if failed:
        raise failed[0]
