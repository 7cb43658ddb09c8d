"""Threads, tasks, signals, forks and purges that meet at the wrong moment: no process hangs, nothing is lost."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import gc
import os
import pickle
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from support.cached import files, getter, lock_path, refuse
from support.processes import LIMIT, Child, blocked, wait_blocked, wait_until
from test_cache_limits import LIMIT_BYTES, put, stored, tally

from sharedvol import CacheError, CacheTimeout, FileLock, LockDeadlockError
from sharedvol.cache import BYTES, JSON, Cache, Codec, entries, lock_wait, single_flight, versioning
from sharedvol.cache import eviction as limits
from sharedvol.cache import temporary as cache_files
from sharedvol.publishing import remove_stale_temporaries

KEY = "a"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def cache(directory: Path) -> Cache:
    return Cache(directory, version="1")


def in_time(work: Callable[[], Any]) -> Any:
    """What ``work`` returns in a thread of its own: a hang is a failure, and not the end of all tests."""
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.append(work())
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(LIMIT / 4)
    assert outcome, "it hangs"
    return outcome[0]


# Tasks.


async def test_a_computed_value_is_stored_though_all_threads_of_the_loop_wait_for_it(
    cache: Cache, directory: Path
) -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(2))

    async def compute() -> str:
        begun.set()
        await go_on.wait()
        return "value"

    got = asyncio.create_task(cache.get_async(KEY, compute))
    await begun.wait()
    waiters = [asyncio.create_task(asyncio.to_thread(cache.get, KEY, refuse)) for _ in range(2)]
    while blocked(lock_path(directory, KEY)) < 2:
        await asyncio.sleep(0.001)
    go_on.set()
    done, _ = await asyncio.wait([got], timeout=LIMIT / 4)
    if not done:
        got.cancel()  # releases the lock, so that the threads end
    assert done, "it hangs"
    assert [await got, *await asyncio.gather(*waiters)] == ["value"] * 3


async def test_a_task_that_is_cancelled_while_it_stores_ends_that_first(
    cache: Cache, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storing, go_on = threading.Event(), threading.Event()
    place_now = cache._storage.limits.place

    def place(*args: Any) -> None:
        storing.set()
        assert go_on.wait(LIMIT)
        place_now(*args)

    monkeypatch.setattr(cache._storage.limits, "place", place)
    task = asyncio.create_task(cache.get_async(KEY, lambda: asyncio.sleep(0, "value")))
    while not storing.is_set():
        await asyncio.sleep(0.001)
    task.cancel()
    task.cancel()
    for _ in range(10):
        await asyncio.sleep(0)
    assert not task.done()
    assert lock_path(directory, KEY).exists()  # or the next one computes what is about to be there
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert cache.get(KEY, refuse) == "value"
    assert len(files(directory)) == 1


@pytest.mark.parametrize("timeout", [None, LIMIT])
def test_a_loop_that_blocks_for_what_its_own_task_computes_is_told(cache: Cache, timeout: float | None) -> None:
    async def main() -> Any:
        begun, go_on = asyncio.Event(), asyncio.Event()

        async def compute() -> str:
            begun.set()
            await go_on.wait()
            return "value"

        task = asyncio.create_task(cache.get_async(KEY, compute))
        await begun.wait()
        with pytest.raises(LockDeadlockError, match="event loop"):
            cache.get(KEY, refuse, timeout=timeout)
        go_on.set()
        return await task

    assert in_time(lambda: asyncio.run(main())) == "value"


# Signals.


def test_a_signal_handler_may_get_while_the_thread_counts(cache: Cache) -> None:
    cache.get(KEY, lambda: 1)

    def work() -> Any:
        with cache._storage.counts._mutex:  # where a handler may run
            return cache.get(KEY, refuse)

    assert in_time(work) == 1


def test_a_wait_that_was_interrupted_at_its_start_is_no_trap_for_the_next(
    cache: Cache, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_: threading.Thread) -> None:
        raise KeyboardInterrupt

    with getter(cache, KEY) as first:
        assert first.receive() == "computing"
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", interrupted)
            with pytest.raises(KeyboardInterrupt):
                lock_wait.wait(str(lock_path(directory, KEY)), LIMIT)
        with ThreadPoolExecutor(1) as pool:
            second = pool.submit(lock_wait.wait, str(lock_path(directory, KEY)), LIMIT / 4)
            wait_until(lambda: threading.active_count() > 2 or second.done(), "the wait")
            first.send("value")
            assert first.receive() == ("got", "value")
            assert second.result(LIMIT) is True


def test_a_get_within_the_storing_of_another_leaves_the_tally_true(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a signal handler does, which runs in the thread that stores."""
    cache = Cache(directory, version="1", max_bytes=LIMIT_BYTES, codec=BYTES)
    real, inner = limits._TallyFile.read, []

    def read(self: Any) -> int | None:
        found = real(self)
        if not inner:
            inner.append(1)
            put(cache, "inner")
        return found

    put(cache, "first")
    monkeypatch.setattr(limits._TallyFile, "read", read)
    put(cache, "outer")
    assert inner
    assert int(tally(directory).read_text().split()[2]) >= stored(directory)


# Limits.


@pytest.mark.parametrize("below", [1, 2])
@pytest.mark.parametrize("code", [errno.EMFILE, errno.EACCES, errno.EIO])
def test_entries_that_cannot_be_counted_are_not_taken_for_none(
    directory: Path, monkeypatch: pytest.MonkeyPatch, code: int, below: int
) -> None:
    cache = Cache(directory, version="1", max_bytes=LIMIT_BYTES, codec=BYTES)
    for number in range(10):
        put(cache, str(number))
    evict, real = limits.SizeLimit._evict, entries.open_directory

    def open_directory(top: str, *names: str) -> int:
        if len(names) == below:
            raise OSError(code, os.strerror(code))
        return real(top, *names)

    def evict_blindly(*args: Any, **options: Any) -> Any:
        with monkeypatch.context() as inner:
            inner.setattr(entries, "open_directory", open_directory)
            return evict(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(limits.SizeLimit, "_evict", evict_blindly)
        put(cache, "new")
        with pytest.raises(CacheError, match="cannot trim"):
            cache.trim()
        patch.setattr(entries, "open_directory", open_directory)
        with pytest.raises(CacheError, match="cannot count"):
            cache.statistics()
    for number in range(5):
        assert stored(directory) <= LIMIT_BYTES
        put(cache, f"newer{number}")


def test_a_temporary_that_a_cleaner_took_between_its_creation_and_its_lock_is_made_anew(
    cache: Cache, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[Path] = []
    real = cache_files.fcntl.flock

    def flock(fd: int, how: int) -> None:
        if not taken:
            monkeypatch.undo()
            taken.extend(remove_stale_temporaries(lock_path(directory, KEY).parent))
        real(fd, how)

    def compute() -> str:
        monkeypatch.setattr(cache_files.fcntl, "flock", flock)
        return "value"

    assert cache.get(KEY, compute) == "value"
    assert len(taken) == 1
    assert cache.get(KEY, refuse) == "value"


# One computes.


def test_who_lost_his_lock_file_leaves_the_next_computers(cache: Cache, directory: Path) -> None:
    """A version was purged and came back meanwhile: the lock file of the same name is another's."""
    with getter(cache, KEY) as first:
        assert first.receive() == "computing"
        Cache(directory, version="2")
        Cache(directory, version="1")
        with getter(cache, KEY) as second:
            assert second.receive() == "computing"
            first.send("fail")
            assert first.receive()[0] == "failed"
            with pytest.raises(CacheTimeout):
                cache.get(KEY, refuse, timeout=0)
            second.send("second")
            assert second.receive() == ("got", "second")
    assert len(files(directory)) == 1


def test_a_value_that_is_there_when_the_time_is_over_is_returned(
    cache: Cache, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process that computed was stopped after it stored, and before it released the lock."""
    path = lock_path(directory, KEY)
    path.parent.mkdir()
    real = lock_wait.wait

    def wait(path: str, timeout: float | None) -> bool:
        assert cache._storage.value(KEY).store("value") == "value"
        return real(path, timeout)

    monkeypatch.setattr(lock_wait, "wait", wait)
    with FileLock(path):
        assert cache.get(KEY, refuse, timeout=0.01) == "value"


@contextlib.contextmanager
def unseen_fork() -> Iterator[None]:
    """A child of a fork that Python does not see, as of a C library: it has all descriptors, and keeps them."""
    libc = ctypes.PyDLL(None)
    pid = libc.fork()
    if pid == 0:
        while True:
            libc.pause()  # no line of Python
    try:
        yield
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_a_copy_of_a_waiters_descriptor_keeps_nobody_out(cache: Cache, directory: Path) -> None:
    with getter(cache, KEY) as first, ThreadPoolExecutor(1) as pool:
        assert first.receive() == "computing"
        waiter = pool.submit(lock_wait.wait, str(lock_path(directory, KEY)), None)
        wait_blocked(lock_path(directory, KEY))
        with unseen_fork():
            first.kill()
            assert waiter.result(LIMIT) is True
            assert cache.get(KEY, lambda: "mine", timeout=0) == "mine"


def test_a_copy_of_a_computers_descriptor_keeps_nobody_waiting(cache: Cache, directory: Path) -> None:
    with contextlib.ExitStack() as stack:

        def compute() -> str:
            children.append(stack.enter_context(getter(cache, KEY)))
            wait_blocked(lock_path(directory, KEY))
            stack.enter_context(unseen_fork())
            return "value"

        children: list[Child] = []
        assert cache.get(KEY, compute) == "value"
        assert children[0].receive() == ("got", "value")


# Versions.


def test_an_old_replica_neither_waits_for_a_purge_nor_for_its_own_timeout(
    cache: Cache, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = versioning.publish

    def purge(connection: Any) -> None:
        def publish(*args: Any, **options: Any) -> Any:
            connection.send("purged")
            connection.recv()
            return real(*args, **options)

        monkeypatch.setattr(versioning, "publish", publish)
        Cache(directory, version="2")

    with Child(purge) as purger:
        assert purger.receive() == "purged"
        assert in_time(lambda: cache.get(KEY, lambda: "mine")) == "mine"
        purger.send("continue")
    assert Cache(directory, version="2").purged is False


def test_a_cache_that_is_sent_to_another_process_takes_nothing_back(cache: Cache, directory: Path) -> None:
    new = Cache(directory, version="2")
    new.get(KEY, lambda: "new")
    copy = pickle.loads(pickle.dumps(cache))
    assert copy.purged is False
    assert copy.get(KEY, lambda: "old") == "old"
    assert new.get(KEY, refuse) == "new"
    assert pickle.loads(pickle.dumps(new)).get(KEY, refuse) == "new"


def test_a_purge_goes_on_past_what_another_removed(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Cache(directory, version="1").get(KEY, lambda: 1)
    for name in ("x", "y"):
        (directory / "entries" / name).mkdir()
    real = os.unlink

    def unlink(name: Any, **options: Any) -> None:
        try:
            real(name, **options)
        except IsADirectoryError:
            if name in ("x", "y") and (directory / "entries" / name).exists():
                (directory / "entries" / name).rmdir()
            raise

    monkeypatch.setattr(os, "unlink", unlink)
    assert Cache(directory, version="2").purged
    assert os.listdir(directory / "entries") == [versioning.directory_name("2")]


def test_a_codec_cannot_have_the_name_of_files(directory: Path) -> None:
    with pytest.raises(ValueError, match="codec"):
        Cache(directory, version="1", codec=Codec("file", JSON.dumps, JSON.loads))
    assert not directory.exists()


def test_a_thousand_gets_and_failures_leave_neither_descriptors_nor_threads(directory: Path) -> None:
    cache = Cache(directory, version="1", max_bytes=10_000)

    async def fail() -> None:
        raise ZeroDivisionError

    def turn(number: int) -> None:
        cache.get(str(number % 70), lambda: number)
        with pytest.raises(ZeroDivisionError):
            cache.get("fails", lambda: 1 // 0)
        with pytest.raises(ZeroDivisionError):
            asyncio.run(cache.get_async("fails", fail))
        with contextlib.closing(cache.open(str(number % 3), lambda file: file.write(b"x" * 100))) as file:
            assert file.read() == b"x" * 100

    turn(0)
    gc.collect()  # the descriptors of other tests' objects
    before = len(os.listdir("/proc/self/fd")), threading.active_count()
    for number in range(300):
        turn(number)
    assert (len(os.listdir("/proc/self/fd")), threading.active_count()) == before
    assert single_flight.sweep(str(lock_path(directory, "fails"))) is False


@pytest.mark.parametrize("end", ["return", "raise"])
def test_a_child_that_leaves_a_writer_changes_nothing_of_its_parents_file(
    cache: Cache, directory: Path, end: str
) -> None:
    parent = os.getpid()

    def write(file: Any) -> None:
        file.write(b"parent")
        pid = os.fork()
        if pid == 0:
            file.write(b" and child")
            if end == "raise":
                raise SystemExit
            return
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7

    try:
        with cache.open(KEY, write) as file:
            assert file.read() == b"parent"
    except (CacheError, SystemExit) as error:
        if os.getpid() != parent:
            os._exit(7 if isinstance(error, SystemExit) or "parent" in str(error) else 8)
        raise
    finally:
        if os.getpid() != parent:
            os._exit(9)
    with cache.open(KEY, refuse) as file:
        assert file.read() == b"parent"
    assert len(files(directory)) == 1
