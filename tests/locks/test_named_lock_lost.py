"""A named lock that ended before its release, and the processes that end or fork under it."""

from __future__ import annotations

import gc
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection as Pipe

import pytest
import sqlalchemy
from support.link import Link
from support.named import holder_of, holder_session, named, wait_until_ended, wait_until_waited_for
from support.processes import LIMIT, Child, run_forked, run_python, wait_until
from support.servers import Database, Server

from sharedvol import DatabaseError, LockLostError, LockTimeout, NotLockedError
from sharedvol.locks.mysql import NamedLock

LOSSES = ("kill", "drop", "silence")


def lose(kind: str, database: Database, link: Link) -> None:
    """End the session that has the lock."""
    session = holder_session(database)
    if kind == "kill":
        database.query(f"KILL {session}")
    elif kind == "drop":
        link.drop()  # in the remaining case the server tires of the session by itself
    wait_until(lambda: holder_of(database) is None, "the server to free the lock")


def linked(database: Database, link: Link, kind: str) -> NamedLock:
    idle = "&init_command=SET SESSION wait_timeout = 1" if kind == "silence" else ""
    return NamedLock(link.url(database.name) + idle, "report", timeout=LIMIT)


@pytest.mark.parametrize("kind", LOSSES)
def test_a_lost_lock_is_told_and_can_be_taken_again(database: Database, kind: str) -> None:
    with Link(database.server) as link:
        lock = linked(database, link, kind)
        for _ in range(2):
            lock.acquire()
            lock.acquire()
            lose(kind, database, link)
            with named(database, timeout=0):
                for _ in range(2):
                    with pytest.raises(LockLostError, match=f"lock '{database.name}.report' is lost"):
                        lock.check()
            assert lock.held
            lock.release()
            with pytest.raises(LockLostError, match=f"lock '{database.name}.report' was lost"):
                lock.release()
            assert not lock.held
            with pytest.raises(NotLockedError):
                lock.release()
        wait_until_ended(database)


@pytest.mark.parametrize("kind", LOSSES)
def test_a_block_that_failed_keeps_its_exception(
    database: Database, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    with Link(database.server) as link:
        lock = linked(database, link, kind)
        with pytest.raises(ZeroDivisionError), lock:
            lose(kind, database, link)
            raise ZeroDivisionError
        assert f"lock '{database.name}.report' was lost before its block failed" in caplog.text
        with pytest.raises(LockLostError), lock:
            lose(kind, database, link)
        assert not lock.held
        with lock:
            pass


@pytest.mark.parametrize("end", [Server.stop, Server.kill])
def test_a_restart_of_the_server_loses_it(private_server: Server, end: Callable[[Server], None]) -> None:
    database = Database(private_server, private_server.create_database())
    lock = named(database)
    lock.acquire()
    end(private_server)
    with pytest.raises(LockLostError):
        lock.check()
    private_server.start()
    with named(database, timeout=0):
        for use in (lock.check, lock.release):
            with pytest.raises(LockLostError):
                use()
    with lock:
        lock.check()


def test_a_lock_freed_on_its_own_connection_is_lost(database: Database) -> None:
    engine = sqlalchemy.create_engine(database.url)
    with engine.connect() as connection:
        lock = NamedLock(connection, "report", timeout=LIMIT)
        for _ in range(2):
            lock.acquire()
            connection.exec_driver_sql("DO RELEASE_ALL_LOCKS()")
            with named(database, timeout=0):
                for use in (lock.check, lock.release):
                    with pytest.raises(LockLostError, match="something on its own connection released it"):
                        use()
        with lock:
            lock.check()
        assert connection.exec_driver_sql("SELECT 1").scalar() == 1
    engine.dispose()


def test_a_killed_waiter_is_an_error_and_its_place_is_free(database: Database) -> None:
    with named(database), ThreadPoolExecutor(1) as pool:
        lock = named(database)
        taken = pool.submit(lock.acquire)
        (waiter,) = wait_until_waited_for(database)
        database.query(f"KILL {waiter}")
        with pytest.raises(DatabaseError) as caught:
            taken.result(LIMIT)
        assert caught.value.lost
        assert not lock.held


def test_a_client_that_fell_silent_keeps_it_and_is_named(database: Database) -> None:
    with Link(database.server) as link:
        lock = NamedLock(link.url(database.name), "report")
        lock.acquire()
        session = holder_session(database)
        link.drop(server_notices=False)
        with pytest.raises(LockTimeout, match=f"held by connection {session} "):
            named(database, timeout=0).acquire()
        with pytest.raises(LockLostError):
            lock.release()
        link.drop()
        named(database).acquire().__enter__().release()


def test_a_killed_process_frees_it(database: Database) -> None:
    def hold(pipe: Pipe) -> None:
        lock = named(database)
        lock.acquire()
        pipe.send("held")
        signal.pause()

    with Child(hold) as child:
        assert child.receive() == "held"
        with ThreadPoolExecutor(1) as pool:
            lock = named(database)
            taken = pool.submit(lock.acquire)
            wait_until_waited_for(database)
            child.kill()
            taken.result(LIMIT)
            pool.submit(lock.release).result(LIMIT)


def test_a_forked_child_starts_without_it_and_cannot_free_it(database: Database) -> None:
    lock = named(database)

    def leave() -> list[object]:
        held = lock.held
        lock.__exit__(None, None, None)
        lock.release()
        for use in (lock.release, lock.check):
            with pytest.raises(NotLockedError):
                use()
        with pytest.raises(LockTimeout):
            lock.acquire(timeout=0)
        return [held, lock.held]

    with lock, lock:
        for _ in range(2):
            assert run_forked(leave) == [False, False]
            lock.check()
        assert run_forked(lambda: run_forked(leave)) == [False, False]
        lock.check()
    assert holder_of(database) is None
    wait_until_ended(database)


def test_a_child_takes_it_on_its_own_when_the_parent_lets_go(database: Database) -> None:
    lock = named(database)

    def take(pipe: Pipe) -> None:
        with lock:
            pipe.send(holder_of(database))
            lock.check()
            pipe.recv()
        lock.__exit__(None, None, None)  # of the parent's block

    with lock:
        session = holder_of(database)
        child = Child(take)
        with child:
            wait_until_waited_for(database)
            lock.check()
            lock.release()
            assert child.receive() not in (session, None)
            with pytest.raises(LockTimeout):
                lock.acquire(timeout=0)
            child.send("go on")
            lock.acquire()


def test_garbage_of_a_child_does_not_disturb_the_parent(database: Database) -> None:
    locks = [named(database, "a"), NamedLock(sqlalchemy.create_engine(database.url), "b")]

    def collect() -> int:
        locks.clear()
        return gc.collect()

    for lock in locks:
        lock.acquire()
    run_forked(collect)
    for lock in locks:
        lock.check()
        lock.release()


ENDING = """
import os, sys
from sharedvol.locks.mysql import NamedLock
lock = NamedLock(sys.argv[1], "report")
with lock:
    pid = os.fork()
    if pid == 0:
        sys.exit(7)  # out of the block, and through all that an interpreter does at its end
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
    lock.check()
    print(lock.holder().connection_id == lock.server.session)
"""


def test_the_end_of_a_forked_interpreter_does_not_disturb_the_parent(database: Database) -> None:
    assert run_python(ENDING, database.url) == "True"


def test_a_fork_beside_a_waiting_thread_hangs_nobody(database: Database) -> None:
    lock = named(database)

    def attempt() -> str:
        with pytest.raises(LockTimeout) as caught:
            lock.acquire(timeout=0)
        return str(caught.value)

    with ThreadPoolExecutor(1) as pool:
        with named(database):
            taken = pool.submit(lock.acquire)
            wait_until_waited_for(database)
            assert "held by connection" in run_forked(attempt)
        taken.result(LIMIT)
        assert "held by connection" in run_forked(attempt)
        lock.check()
        pool.submit(lock.release).result(LIMIT)


def test_forks_while_threads_lock_and_check_disturb_nobody(database: Database) -> None:
    # A child that is forked while another thread imports a module, or is within OpenSSL, can hang there whatever we do.
    lock, stop = NamedLock(f"{database.url}&ssl_disabled=1", "report", timeout=LIMIT), threading.Event()
    lock.acquire().__enter__().release()

    def work() -> int:
        done = 0
        while not stop.is_set():
            with lock:
                lock.check()
            done += 1
        return done

    def use() -> bool:
        with lock:
            lock.check()
        return lock.held

    with ThreadPoolExecutor(2) as pool:
        working = [pool.submit(work) for _ in range(2)]
        try:
            for _ in range(10):
                assert run_forked(use) is False
        finally:
            stop.set()
        assert all(future.result(LIMIT) for future in working)
    assert holder_of(database) is None


def test_an_object_that_is_forgotten_frees_it(database: Database) -> None:
    named(database).acquire()
    gc.collect()
    wait_until(lambda: holder_of(database) is None, "the connection to end")
    wait_until_ended(database)
