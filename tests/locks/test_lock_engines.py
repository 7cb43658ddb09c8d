"""What every engine promises in the same words: one lock, whatever keeps it."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from multiprocessing.connection import Connection as Pipe
from pathlib import Path

import pytest
from support.greenlets import PATCHED
from support.lock_engines import ENGINES, Engine, OnDatabase, OnFile, OnRedis
from support.processes import LIMIT, Child, run_forked, run_python, wait_until
from support.servers import Database, Server

from sharedvol import Lock, LockError, LockLostError, LockTimeout, NotLockedError, container_id, watch, worker_token

SOON = 0.01  # seconds between two questions of a watch


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest, tmp_path: Path, _server_of: Callable[[str], Server]) -> Iterator[Engine]:
    if request.param == "file":
        yield OnFile(tmp_path)
    elif request.param == "redis":
        yield OnRedis(request.getfixturevalue("redis_server"))
    else:
        server = _server_of(request.param)
        database = Database(server, server.create_database())
        yield OnDatabase(database)
        database.drop()


OBJECT = """
import sys
from sharedvol import LockTimeout, open_lock
url = sys.argv[1]
one = open_lock(url)
"""
GREENLETS = """
print({contend(lambda: one), contend(lambda: open_lock(url)), contend(lambda: open_lock(url, timeout=1000))})
with open_lock(url):
    late = gevent.spawn(lambda: open_lock(url, timeout=0.02).acquire())
    late.join()
    assert isinstance(late.exception, LockTimeout), late.exception
"""


@pytest.mark.parametrize("early", [False, True], ids=["patched-first", "patched-later"])
def test_greenlets_exclude_each_other_and_wait_without_stopping_the_process(engine: Engine, early: bool) -> None:
    if early and isinstance(engine, OnRedis):
        pytest.skip("redis-py must be imported after gevent has patched")
    code = OBJECT + PATCHED if early else PATCHED + OBJECT
    assert run_python(code + GREENLETS, engine.url) == "{1}"


def test_processes_lose_no_update(engine: Engine, tmp_path: Path) -> None:
    number = tmp_path / "number"
    number.write_text("0")

    def count(pipe: Pipe) -> None:
        lock = engine.open()
        for _ in range(6):
            with lock:
                number.write_text(str(int(number.read_text()) + 1))
        pipe.send("done")

    with Child(count) as one, Child(count) as two, Child(count) as three:
        for child in (one, two, three):
            assert child.receive() == "done"
    assert number.read_text() == "18"


def test_who_gets_it_not_in_time_is_told_who_has_it(engine: Engine) -> None:
    with Child(lambda pipe: hold(engine, pipe)) as child:
        child.receive()
        with pytest.raises(LockTimeout, match="nightly") as caught:
            engine.open(fenced=True).acquire(timeout=0.2)
        assert (caught.value.waited, caught.value.holder.pid) == (0.2, child.pid)
        for timeout in (0, 0.01):
            with pytest.raises(LockTimeout) as caught:
                engine.open().acquire(timeout=timeout)
            assert caught.value.waited == timeout
        child.send("end")


def hold(engine: Engine, pipe: Pipe) -> None:
    """Take it, tell the token, and let it go when told to."""
    with engine.open(fenced=True, purpose="nightly") as lock:
        pipe.send((worker_token(), lock.token))
        pipe.recv()


def test_anybody_is_told_who_has_it(engine: Engine) -> None:
    lock = engine.open()
    assert lock.holder() is None
    with Child(lambda pipe: hold(engine, pipe)) as child:
        worker, token = child.receive()
        holder = lock.holder()
        assert holder is not None
        assert (holder.replica, holder.pid, holder.worker) == (container_id(), child.pid, worker)
        assert (holder.purpose, holder.token) == ("nightly", token)
        assert holder.since is not None
        assert abs(holder.since - datetime.now(UTC)) < timedelta(days=1)
        assert {"replica", "pid", "worker", "purpose", "since", "token"} <= set(holder.as_dict())
        child.send("end")
        child.wait()
    wait_until(lambda: lock.holder() is None, "nobody to have it")
    with engine.open(fenced=True, purpose="mine") as mine:
        for each in (lock, mine):
            holder = each.holder()
            assert holder is not None
            assert (holder.purpose, holder.pid, holder.token) == ("mine", os.getpid(), mine.token)


def test_a_holder_that_says_nothing_is_not_taken_for_an_earlier_one(engine: Engine) -> None:
    with engine.open(fenced=True, purpose="over"):
        pass
    with engine.open():
        holder = engine.open().holder()
        assert holder is not None
        assert (holder.purpose, holder.token, holder.worker) == ("", None, None)


def test_tokens_grow_from_process_to_process_also_where_the_holder_is_killed(engine: Engine) -> None:
    tokens = []

    def take(pipe: Pipe) -> None:
        lock = engine.open(fenced=True)
        lock.acquire()
        pipe.send(lock.token)
        signal.pause()

    for _ in range(3):
        with Child(take) as child, ThreadPoolExecutor(1) as pool:
            tokens.append(child.receive())
            lock = engine.open(fenced=True)
            taken = pool.submit(lock.acquire)
            child.kill()
            taken.result(LIMIT)
            tokens.append(pool.submit(lambda lock=lock: lock.token).result(LIMIT))
            pool.submit(lock.release).result(LIMIT)
    assert tokens == sorted(set(tokens))
    assert tokens[-1] < 2**53


def test_it_is_the_threads_that_took_it_and_as_often(engine: Engine) -> None:
    lock = engine.open(fenced=True)
    with lock as same, ThreadPoolExecutor(1) as pool:
        assert same is lock
        with lock.acquire():
            assert lock.held
        assert lock.held
        with pytest.raises(LockTimeout):
            pool.submit(lock.acquire, 0).result(LIMIT)
        with pytest.raises(NotLockedError):
            pool.submit(lock.release).result(LIMIT)
        pool.submit(lock.check).result(LIMIT)
        lock.check()
    assert not lock.held
    for use in (lock.release, lock.check):
        with pytest.raises(NotLockedError):
            use()
    with pytest.raises(NotLockedError):
        _ = lock.token
    with engine.open() as plain, pytest.raises(LockError, match="fenced=True"):
        _ = plain.token


def test_a_lost_lock_is_told_by_check_release_and_the_end_of_the_block(engine: Engine) -> None:
    lock = engine.open(fenced=True)
    lock.acquire()
    lock.acquire()
    token = lock.token
    engine.lose()
    with engine.open(fenced=True) as other:
        assert other.token > token
        for _ in range(2):
            with pytest.raises(LockLostError):
                lock.check()
        lock.release()
        with pytest.raises(LockLostError):
            lock.release()
        other.check()
    assert not lock.held
    with pytest.raises(LockLostError), lock:
        engine.lose()
    with pytest.raises(LockLostError), lock.acquire():
        engine.lose()
    with lock:
        lock.check()
        assert lock.token > token


def test_a_block_that_failed_keeps_its_exception(engine: Engine) -> None:
    lock = engine.open(fenced=True)
    with pytest.raises(ZeroDivisionError), lock:
        engine.lose()
        raise ZeroDivisionError
    assert not lock.held
    with lock:
        lock.check()


# Not with Redis where Python does not see the fork: its thread may hold the interpreter's own mutex at that moment.
@pytest.mark.parametrize(
    ("engine", "any_fork"),
    [*((name, "seen") for name in ENGINES), *((name, "unseen") for name in ENGINES if name != "redis")],
    indirect=True,
)
@pytest.mark.usefixtures("any_fork")
def test_a_forked_child_starts_without_it_and_cannot_free_it(engine: Engine) -> None:
    lock = engine.open(fenced=True)

    def leave() -> list[object]:
        held = lock.held
        lock.__exit__(None, None, None)
        for use in (lock.release, lock.check):
            with pytest.raises(NotLockedError):
                use()
        with pytest.raises(LockTimeout):
            lock.acquire(timeout=0)
        return [held, lock.held]

    with lock:
        for _ in range(2):
            assert run_forked(leave) == [False, False]
            lock.check()


def test_a_child_that_outlives_the_killed_holder_does_not_keep_it(engine: Engine) -> None:
    def take(pipe: Pipe) -> None:
        lock = engine.open(fenced=True)
        lock.acquire()
        child = os.fork()
        if child == 0:
            signal.pause()
        pipe.send(child)
        signal.pause()

    with Child(take) as holder:
        child = holder.receive()
        watched = os.pidfd_open(child)
        try:
            holder.kill()
            with engine.open():
                signal.pidfd_send_signal(watched, 0)  # it lives
        finally:
            signal.pidfd_send_signal(watched, signal.SIGKILL)
            os.close(watched)


# What follows is about `watch`.


def watchers() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "sharedvol-watch"]


def test_a_watch_calls_back_once_with_the_error(engine: Engine) -> None:
    told: list[LockLostError] = []
    event = threading.Event()

    def on_lost(error: LockLostError) -> None:
        told.append(error)
        event.set()

    lock = engine.open(fenced=True)
    lock.acquire()
    with watch(lock, SOON, on_lost=on_lost) as watching:
        lock.check()
        assert watching.lost is None
        engine.lose()
        assert event.wait(LIMIT)
        wait_until(lambda: not watchers(), "the thread to end, since there is no more to tell")
    assert [type(error) for error in told] == [LockLostError]
    assert watching.lost is told[0]
    with pytest.raises(LockLostError):
        lock.release()


def test_a_watch_over_a_lock_that_is_kept_says_nothing_and_leaves_no_thread(engine: Engine) -> None:
    told: list[LockLostError] = []
    lock = engine.open(fenced=True)
    asked = Counting(lock)
    with watch(asked, SOON, on_lost=told.append):
        with lock:
            begun = asked.times
            wait_until(lambda: asked.times > begun + 3, "some questions")
        released = asked.times
        wait_until(lambda: asked.times > released + 3, "questions about a lock that is not held")
        with lock:
            again = asked.times
            wait_until(lambda: asked.times > again + 3, "some questions more")

        def look() -> list[str]:
            return watchers()

        assert run_forked(look) == []
        assert watchers() == ["sharedvol-watch"]
    assert watchers() == []
    assert told == []


def test_a_forked_child_leaves_a_watch_block_without_a_word(engine: Engine) -> None:
    lock = engine.open(fenced=True)
    with lock, watch(lock, SOON, on_lost=print) as watching:
        assert run_forked(lambda: watching.__exit__(None, None, None)) is None
        assert watchers() == ["sharedvol-watch"]
        lock.check()


class Counting:
    """A lock as a watch sees it, with its questions counted."""

    def __init__(self, lock: Lock) -> None:
        self.lock, self.times = lock, 0

    def check(self) -> None:
        try:
            self.lock.check()
        finally:
            self.times += 1
