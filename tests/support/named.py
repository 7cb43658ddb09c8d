"""What the tests of the named lock share: locks on a test's database, and what its server says of them."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from sharedvol.locks.mysql import NamedLock
from support.processes import LIMIT, wait_until
from support.servers import Database


def named(database: Database, name: str = "report", timeout: float | None = LIMIT, **options: Any) -> NamedLock:
    """A lock with a connection of its own."""
    return NamedLock(database.url, name, timeout=timeout, **options)


def holder_of(database: Database, name: str = "report") -> int | None:
    """The session that has the lock, as the server says."""
    ((holder,),) = database.query(f"SELECT IS_USED_LOCK('{database.name}.{name}')")
    return holder


def holder_session(database: Database, name: str = "report") -> int:
    """The same, where somebody must have it."""
    holder = holder_of(database, name)
    assert holder is not None
    return holder


def take_lock(cursor: Any, name: str) -> None:
    """Take a lock on a session that stays open. The session of a test before may keep it for a moment."""
    cursor.execute("SELECT GET_LOCK(%s, %s)", (name, LIMIT))
    assert cursor.fetchone() == (1,), name


def sessions(database: Database, condition: str = "TRUE") -> list[int]:
    """The connections to the database for which ``condition`` holds in the process list."""
    rows = database.query(
        "SELECT id FROM information_schema.processlist "
        f"WHERE db = '{database.name}' AND id <> CONNECTION_ID() AND {condition}"
    )
    return [session for (session,) in rows]


def wait_until_waited_for(database: Database, count: int = 1) -> list[int]:
    """Until that many sessions are in the server's queue for a lock; which."""
    wait_until(lambda: len(sessions(database, "state = 'User lock'")) >= count, f"{count} in the queue")
    return sessions(database, "state = 'User lock'")


def wait_until_ended(database: Database, left: int = 0) -> None:
    """Until no more than that many are connected to the database."""
    wait_until(lambda: len(sessions(database)) <= left, "connections to end")


def wait_until_believed(database: Database) -> None:
    """Until the server has run for so long that rows of holders are certain to be of this life of it."""

    def is_old() -> bool:
        ((_, seconds),) = database.query("SHOW GLOBAL STATUS LIKE 'Uptime'")
        if int(seconds) < 4:
            database.query("SELECT SLEEP(0.2)")
        return int(seconds) >= 4

    wait_until(is_old, "the server to be older")


def in_thread(work: Callable[[], object]) -> object:
    """What ``work`` returns, or raises, in a thread of its own."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result(LIMIT)
