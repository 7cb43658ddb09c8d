"""What the named lock promises: whom it keeps out, for how long one waits, and what is told meanwhile."""

from __future__ import annotations

import itertools
import pickle
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from multiprocessing.connection import Connection as Pipe

import filelock
import pytest
import sqlalchemy
from support.link import Link
from support.named import holder_of, holder_session, in_thread, named, sessions, wait_until_ended, wait_until_waited_for
from support.processes import LIMIT, Child, wait_until
from support.servers import Database

from sharedvol import LockDeadlockError, LockError, LockTimeout, NotLockedError
from sharedvol.locks.mysql import NamedLock
from sharedvol.locks.mysql.lock import LockHolder, Waiting

TIME_LIMIT = {"mariadb": "SET SESSION max_statement_time = 0.2", "mysql": "SET SESSION max_execution_time = 200"}


def test_a_with_block_holds_the_lock_on_a_connection_of_its_own(database: Database) -> None:
    lock = named(database)
    with lock as same:
        assert same is lock
        assert lock.held
        assert sessions(database, f"id = {holder_of(database)}")
        lock.check()
        with pytest.raises(LockTimeout):
            named(database, timeout=0).acquire()
    assert not lock.held
    assert holder_of(database) is None
    wait_until_ended(database)


def test_a_lock_costs_four_round_trips_and_its_release_one(database: Database) -> None:
    with Link(database.server) as link:
        lock = NamedLock(link.url(database.name), "report")
        lock.acquire()
        own = [packet for packet in link.packets if not packet.startswith(b"\x03SET NAMES")]  # that is PyMySQL
        link.clear()
        lock.release()
        assert (len(own), link.round_trips) == (4, 1)


def test_processes_lose_no_update(database: Database) -> None:
    database.query("CREATE TABLE t (n INT)")
    database.query("INSERT INTO t VALUES (0)")

    def count(pipe: Pipe) -> None:
        with closing(database.connect()) as connection, connection.cursor() as cursor:
            for _ in range(10):
                with named(database):
                    cursor.execute("SELECT n FROM t")
                    ((number,),) = cursor.fetchall()
                    cursor.execute("UPDATE t SET n = %s", (number + 1,))

    with ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(Child(count))
    assert database.query("SELECT n FROM t") == [(30,)]


def test_threads_exclude_each_other_on_one_object(database: Database) -> None:
    lock, inside, together = named(database), [], []

    def work() -> None:
        for _ in range(5):
            with lock, lock:
                inside.append(threading.get_ident())
                lock.check()
                together.append(len(inside))
                inside.pop()

    with ThreadPoolExecutor(4) as pool:
        for future in [pool.submit(work) for _ in range(4)]:
            future.result(LIMIT)
    assert together == [1] * 20
    assert holder_of(database) is None


def test_another_thread_of_the_object_waits_no_longer_than_it_says_and_cannot_release(database: Database) -> None:
    lock = named(database)
    with lock:
        for timeout in (0, 0.01):
            with pytest.raises(LockTimeout, match="another process, thread or task"):
                in_thread(lambda timeout=timeout: lock.acquire(timeout=timeout))
        with pytest.raises(NotLockedError, match="held by another thread"):
            in_thread(lock.release)
        in_thread(lock.check)
        assert lock.held


def test_it_is_reentrant_and_the_last_release_frees(database: Database) -> None:
    lock = named(database)
    with lock, lock:
        with lock.acquire(timeout=0) as same:
            assert same is lock
        assert len(sessions(database)) == 1
        lock.release()
        assert holder_of(database) is not None
        lock.acquire()
    assert holder_of(database) is None


def test_only_a_held_lock_is_released_or_checked(database: Database) -> None:
    lock = named(database)
    for _ in range(2):
        for use in (lock.release, lock.check):
            with pytest.raises(NotLockedError, match="not held by this process"):
                use()
        lock.acquire()
        lock.release()


def test_threads_may_check_together_and_while_the_owner_releases(database: Database) -> None:
    lock, stop, checked = named(database), threading.Event(), itertools.count()
    done = [0]

    def check() -> None:
        while not stop.is_set():
            try:
                lock.check()
                lock.holder()
            except NotLockedError:
                continue
            done[0] = next(checked)

    with ThreadPoolExecutor(2) as pool:
        watching = [pool.submit(check) for _ in range(2)]
        try:
            for _ in range(10):
                with lock:
                    enough = done[0] + 5
                    wait_until(lambda enough=enough: done[0] > enough or any(w.done() for w in watching), "checks")
        finally:
            stop.set()
        for each in watching:
            each.result(LIMIT)


@pytest.mark.parametrize("timeout", [0, 0.3, 1.4])
def test_the_server_is_not_asked_to_wait_longer_than_allowed(database: Database, timeout: float) -> None:
    with named(database), Link(database.server) as link:
        with pytest.raises(LockTimeout) as caught:
            NamedLock(link.url(database.name), "report", timeout=timeout).acquire()
        asked = [
            float(found[1]) for packet in link.packets if (found := re.search(rb"GET_LOCK\(.*, ([\d.e-]+)\)", packet))
        ]
        assert asked
        rounded = [round(seconds) if database.server.flavour == "mysql" else seconds for seconds in asked]
        assert sum(rounded) <= timeout
    assert caught.value.waited == timeout


def test_who_waits_for_ever_gets_it_when_it_is_freed(database: Database) -> None:
    lock = named(database)
    lock.acquire()
    with Child(lambda pipe: pipe.send(named(database, timeout=None).acquire().__enter__().held)) as child:
        wait_until_waited_for(database)
        lock.release()
        assert child.receive() is True


def test_neither_a_statement_limit_nor_a_read_timeout_ends_a_wait(database: Database) -> None:
    url = f"{database.url}&init_command={TIME_LIMIT[database.server.flavour]}&read_timeout=2"
    with ThreadPoolExecutor(1) as pool:
        with named(database):
            reports: list[Waiting] = []
            waiter = NamedLock(url, "report", on_wait=reports.append)
            taken = pool.submit(waiter.acquire)
            wait_until(lambda: len(reports) >= 2 or taken.done(), "a second slice")
            wait_until_waited_for(database)
        taken.result(LIMIT)
        pool.submit(waiter.release).result(LIMIT)


def test_the_timeout_tells_who_holds_it_and_survives_pickling(database: Database) -> None:
    with named(database) as lock:
        with pytest.raises(LockTimeout) as caught:
            named(database, timeout=0).acquire()
        holder = lock.holder()
        assert isinstance(holder, LockHolder)
    error = caught.value
    assert isinstance(error, filelock.Timeout)
    assert isinstance(error, TimeoutError)
    assert isinstance(error.holder, LockHolder)
    assert (error.holder.connection_id, error.holder.user) == (holder.connection_id, "root")
    assert error.lock_file == lock.name == f"{database.name}.report"
    host = re.escape(str(error.holder.host))
    assert re.search(rf"held by connection {holder.connection_id} \(root from {host}, SLEEP for \d+ s\)", str(error))
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.holder, again.waited) == (str(error), error.holder, error.waited)


def test_an_account_that_may_not_see_the_holder_still_learns_its_number(database: Database) -> None:
    user = f"u{database.name[-8:]}"
    database.query(f"CREATE USER {user}@'%'")
    database.query(f"GRANT SELECT ON {database.name}.* TO {user}@'%'")
    try:
        with named(database), pytest.raises(LockTimeout) as caught:
            number = holder_session(database)
            NamedLock(database.server.url(database.name, user), "report", timeout=0).acquire()
        assert caught.value.holder == LockHolder(connection_id=number)
        assert f"held by connection {number}: not waiting" in str(caught.value)
    finally:
        database.query(f"DROP USER {user}@'%'")


def test_who_waits_is_told_the_holder(database: Database) -> None:
    reports: list[Waiting] = []
    told = threading.Event()

    def report(waiting: Waiting) -> None:
        reports.append(waiting)
        told.set()

    lock = named(database)
    with ThreadPoolExecutor(1) as pool:
        lock.acquire()
        number = holder_of(database)
        waiter = named(database, on_wait=report)
        taken = pool.submit(waiter.acquire)
        assert told.wait(LIMIT)
        lock.release()
        taken.result(LIMIT)
        pool.submit(waiter.release).result(LIMIT)
    first = reports[0]
    assert first.holder is not None
    assert (first.name, first.holder.connection_id, first.timeout) == (lock.name, number, LIMIT)
    assert first.waited >= 0


def test_an_observer_that_fails_ends_the_wait_and_leaves_nothing(database: Database) -> None:
    with named(database):
        with pytest.raises(ZeroDivisionError):
            named(database, on_wait=lambda _: 1 / 0).acquire()
        wait_until_ended(database, left=1)
    assert holder_of(database) is None


def test_a_killed_wait_is_an_error_and_no_lock(database: Database) -> None:
    with named(database), ThreadPoolExecutor(1) as pool:
        taken = pool.submit(named(database).acquire)
        (waiter,) = wait_until_waited_for(database)
        database.query(f"KILL QUERY {waiter}")
        with pytest.raises(LockError, match="the wait was killed") as caught:
            taken.result(LIMIT)
        assert not isinstance(caught.value, LockTimeout)
        wait_until_ended(database, left=1)


def test_a_deadlock_is_told_apart(database: Database) -> None:
    engine = sqlalchemy.create_engine(database.url)
    with engine.connect() as one, engine.connect() as two, ThreadPoolExecutor(1) as pool:
        NamedLock(one, "a").acquire()
        NamedLock(two, "b").acquire()
        crossing = NamedLock(one, "b", timeout=LIMIT)
        taken = pool.submit(crossing.acquire)
        wait_until_waited_for(database)
        with pytest.raises(LockDeadlockError, match="would never end"):
            NamedLock(two, "a", timeout=LIMIT).acquire()
        two.exec_driver_sql("DO RELEASE_LOCK(%s)", (f"{database.name}.b",))
        taken.result(LIMIT)
        one.invalidate()
        two.invalidate()
    engine.dispose()


@pytest.mark.parametrize("timeout", [-1, float("nan")])
def test_a_timeout_that_is_none_is_refused(database: Database, timeout: float) -> None:
    with pytest.raises(ValueError, match="give seconds, 0 not to wait"):
        named(database, timeout=timeout)
    with pytest.raises(ValueError, match="give seconds, 0 not to wait"):
        named(database).acquire(timeout=timeout)
