"""A named lock on what it is given: a URL, an engine, a connection; and nothing of it left behind, come what may."""

from __future__ import annotations

import contextlib
import linecache
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from types import FrameType
from typing import Any

import pytest
import sqlalchemy
from support.link import Link
from support.named import holder_of, holder_session, in_thread, named, sessions, wait_until_ended, wait_until_waited_for
from support.processes import LIMIT, run_forked, wait_until
from support.servers import Database

from sharedvol import DatabaseError, LockError, LockTimeout
from sharedvol.database import connection as database_module
from sharedvol.locks import server_lock
from sharedvol.locks.holder import Holder
from sharedvol.locks.mysql import NamedLock, get_lock, pooler, token_table
from sharedvol.locks.mysql import lock as mysql

Target = str | sqlalchemy.URL | sqlalchemy.Engine
TARGETS: dict[str, Callable[[Database], Target]] = {
    "driver": lambda database: database.url,
    "no driver": lambda database: database.url.replace("mysql+pymysql://", "mysql://"),
    "mariadb": lambda database: database.url.replace("mysql+pymysql://", "mariadb://"),
    "url": lambda database: sqlalchemy.make_url(database.url),
    "engine": lambda database: sqlalchemy.create_engine(database.url),
    "null pool": lambda database: sqlalchemy.create_engine(database.url, poolclass=sqlalchemy.NullPool),
}


@pytest.mark.parametrize("kind", TARGETS)
def test_each_kind_of_target_gets_a_session_of_its_own(database: Database, kind: str) -> None:
    lock = NamedLock(TARGETS[kind](database), "report", timeout=LIMIT)
    for _ in range(2):
        with lock:
            assert sessions(database) == [holder_of(database)]
            with pytest.raises(LockTimeout):
                named(database, timeout=0).acquire()
        assert holder_of(database) is None
        wait_until_ended(database)


def test_an_engines_pool_is_left_alone_also_when_it_is_exhausted(database: Database) -> None:
    engine = sqlalchemy.create_engine(database.url, pool_size=1, max_overflow=0, pool_timeout=0.01)
    with engine.connect() as connection:
        server_lock = connection.exec_driver_sql("SELECT CONNECTION_ID()").scalar()
        with NamedLock(engine, "report") as lock:
            assert lock.server is not None
            assert lock.server.session not in (server_lock, None)
            assert engine.pool.checkedout() == 1  # type: ignore[attr-defined]
    assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    with engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT CONNECTION_ID()").scalar() == server_lock
        assert sessions(database) == [server_lock]
    engine.dispose()


def test_a_forked_child_gets_no_connection_of_its_parents_pool(database: Database) -> None:
    engine = sqlalchemy.create_engine(database.url)
    with engine.connect() as connection:
        server_lock = connection.exec_driver_sql("SELECT CONNECTION_ID()").scalar()

    def look() -> int:
        with NamedLock(engine, "report"):
            return holder_session(database)

    assert run_forked(look) != server_lock
    with engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT CONNECTION_ID()").scalar() == server_lock
    engine.dispose()


def test_a_callers_session_is_used_and_not_closed_and_commit_leaves_the_lock(database: Database) -> None:
    database.query("CREATE TABLE t (n INT)")
    engine = sqlalchemy.create_engine(database.url)
    with engine.connect() as connection:
        server_lock = connection.exec_driver_sql("SELECT CONNECTION_ID()").scalar()
        connection.exec_driver_sql("INSERT INTO t VALUES (1)")
        lock = NamedLock(connection, "report")
        with lock:
            assert holder_of(database) == server_lock
            assert database.query("SELECT * FROM t") == []
            connection.commit()
            lock.check()
            connection.exec_driver_sql("INSERT INTO t VALUES (2)")
            connection.rollback()
            lock.check()
            with pytest.raises(LockTimeout):
                named(database, timeout=0).acquire()
        assert holder_of(database) is None
        assert connection.exec_driver_sql("SELECT CONNECTION_ID(), @@autocommit").one() == (server_lock, 0)
    assert database.query("SELECT * FROM t") == [(1,)]
    engine.dispose()


def test_a_failed_acquire_leaves_a_callers_session_as_it_was(database: Database) -> None:
    engine = sqlalchemy.create_engine(database.url)
    with engine.connect() as connection:
        server_lock = connection.exec_driver_sql("SELECT CONNECTION_ID()").scalar()
        lock = NamedLock(connection, "report")
        with named(database), pytest.raises(LockTimeout):
            lock.acquire(timeout=0)
        assert connection.exec_driver_sql("SELECT CONNECTION_ID()").scalar() == server_lock
        with lock:
            assert holder_of(database) == server_lock
    engine.dispose()


def test_a_closed_connection_is_an_error_of_ours(database: Database) -> None:
    engine = sqlalchemy.create_engine(database.url)
    connection = engine.connect()
    connection.close()
    with pytest.raises(DatabaseError, match="cannot use the connection to root@127"):
        NamedLock(connection, "report").acquire()
    engine.dispose()


def test_a_child_does_not_speak_on_its_parents_session(database: Database) -> None:
    engine = sqlalchemy.create_engine(database.url)
    with engine.connect() as connection:
        lock = NamedLock(connection, "report")
        ours = database_module.Database.open(database.url)

        def use() -> list[str]:
            said = []
            for each in (lock, NamedLock(ours, "report")):
                for use in (each.acquire, each.holder):
                    with pytest.raises(LockError, match="connection of the parent") as caught:
                        use()
                    said.append(str(caught.value))
            return said

        assert len(run_forked(use)) == 4
        with lock:
            lock.check()
        ours.close()
    engine.dispose()


def test_the_holder_is_told_without_the_lock(database: Database) -> None:
    lock = named(database)
    assert lock.holder() is None
    with named(database):
        holder = lock.holder()
        assert holder is not None
        assert holder.connection_id == holder_of(database)
        assert set(holder.as_dict()) == {"connection_id", "user", "host", "seconds", *Holder().as_dict()}
    wait_until_ended(database)


def test_a_failed_acquire_leaves_no_connection(database: Database) -> None:
    with named(database), closing(database.connect()):
        for lock in (named(database, timeout=0), named(database, "x" * 300, literal=True)):
            with pytest.raises(LockError):
                lock.acquire()
            wait_until_ended(database, left=2)
    wait_until_ended(database)


@pytest.mark.parametrize("packets", range(1, 6))
def test_a_network_that_fails_during_acquire_leaves_nothing(database: Database, packets: int) -> None:
    with Link(database.server) as link:
        lock = NamedLock(link.url(database.name), "report")
        link.drop_after(packets)
        with pytest.raises(DatabaseError) as caught:
            lock.acquire()
        assert caught.value.lost
        assert not lock.held
        wait_until(lambda: holder_of(database) is None, "the server to notice")
        with lock:
            lock.check()


class Interrupts:
    """Raises KeyboardInterrupt before a given line of those that `work` comes to, clean-up left out."""

    MODULES = (database_module, get_lock, mysql, pooler, server_lock, token_table)
    FILES = tuple(module.__file__ for module in MODULES)
    CLEAN_UP = ("_drop", "close")

    def __init__(self) -> None:
        self.step = 0

    def strikes(self, work: Callable[[], object]) -> bool:
        """Whether ``work`` came as far as to be interrupted, one line later at each call."""
        self.step += 1
        self._left, self._quiet = self.step, 0
        before = sys.gettrace()
        sys.settrace(self._trace)
        try:
            work()
        except KeyboardInterrupt:
            return True
        finally:
            sys.settrace(before)
        return False

    def _trace(self, frame: FrameType, event: str, _: object) -> Any:
        if frame.f_code.co_filename not in self.FILES:
            return None
        caller: FrameType | None = frame
        while caller is not None:
            if caller.f_code.co_name in self.CLEAN_UP and caller.f_code.co_filename in self.FILES:
                return None
            caller = caller.f_back
        line = linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip()
        # Where CPython handles no signal: between a block and its __exit__, and before a `try` has begun.
        if event == "line" and not line.startswith(("with ", "try:")):
            self._left -= 1
            if self._left == 0:
                raise KeyboardInterrupt
        return self._trace


@pytest.mark.parametrize("borrowed", [False, True])
def test_an_interrupt_anywhere_leaves_the_lock_free_or_held(database: Database, borrowed: bool) -> None:
    url = f"{database.url}&ssl_disabled=1"
    engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool)
    for phase in ("acquire", "release"):
        interrupts, struck = Interrupts(), True
        while struck:
            with contextlib.ExitStack() as stack:
                connection = stack.enter_context(engine.connect()) if borrowed else None
                lock = NamedLock(connection or url, "report", timeout=LIMIT)
                if phase == "release":
                    lock.acquire()
                struck = interrupts.strikes(getattr(lock, phase))
                if lock.held:
                    lock.check()
                    lock.release()
                wait_until(lambda: holder_of(database) is None, f"the lock to be free after {interrupts.step} lines")
                if connection is None or connection.connection.driver_connection.open:  # type: ignore[union-attr]
                    in_thread(lambda lock=lock: lock.acquire(timeout=LIMIT) and lock.release())
                if connection is not None:
                    connection.invalidate()
        assert interrupts.step > 20


def test_an_interrupted_wait_leaves_the_queue(database: Database) -> None:
    with ThreadPoolExecutor(1) as pool, named(database):
        reports: list[object] = []

        def interrupt(waiting: object) -> None:
            reports.append(waiting)
            if len(reports) == 2:
                raise KeyboardInterrupt

        taken = pool.submit(named(database, on_wait=interrupt).acquire)
        wait_until_waited_for(database)
        with pytest.raises(KeyboardInterrupt):
            taken.result(LIMIT)
        wait_until_ended(database, left=1)
