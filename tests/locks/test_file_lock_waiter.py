"""Waits that their owners walk away from: they pile up nothing, keep nobody out, and are taken over."""

from __future__ import annotations

import asyncio
import fcntl
import os
import threading
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
from support.processes import LIMIT, Child, blocked, descriptors, run_forked, run_python, wait_blocked, wait_until

from sharedvol import FileLock, LockFileError, LockTimeout
from sharedvol.locks.file import linux, waiter
from sharedvol.locks.file.fork import close_tracked, open_tracked

SHORT = 0.01
"""Seconds of a wait that is meant to end without the lock."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    wait_until(lambda: waiter.waiting() == 0, "the waiters of other tests to end")
    path = tmp_path / "index.lock"
    path.touch()
    return path


def hold_ours(path: Path, connection: Connection) -> None:
    with FileLock(path):
        connection.send("held")
        connection.recv()


def hold_flock(path: Path, connection: Connection) -> None:
    """Hold one of the two families only, as Python's filelock does."""
    fd = os.open(path, os.O_RDWR)
    fcntl.flock(fd, fcntl.LOCK_EX)
    connection.send("held")
    connection.recv()


def lockf_is_free(path: Path) -> bool:
    """Whether a process of the other family, as R's filelock, gets the lock now."""

    def look() -> bool:
        fd = os.open(path, os.O_RDWR)
        try:
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    return bool(run_forked(look))


def give_up(path: Path, *, shared: bool = False) -> None:
    with pytest.raises(LockTimeout):
        FileLock(path, timeout=SHORT, shared=shared).acquire()


@pytest.mark.parametrize("hold", [hold_ours, hold_flock])
def test_timeouts_pile_up_neither_threads_nor_descriptors(path: Path, hold: Any) -> None:
    with Child(lambda connection: hold(path, connection)) as child:
        assert child.receive() == "held"
        threads = threading.active_count()
        for _ in range(100):
            give_up(path)
            assert waiter.waiting() == 1
            assert threading.active_count() == threads + 1
            assert descriptors(path) == 1
        child.send("let go")
    # A waiter is off the list before its descriptor is closed.
    wait_until(lambda: descriptors(path) == 0, "the parked waiter to end")
    assert waiter.waiting() == 0
    assert not waiter._parked


def test_an_abandoned_waiters_late_grant_drops_by_itself(path: Path) -> None:
    with Child(lambda connection: hold_ours(path, connection)) as child:
        assert child.receive() == "held"
        give_up(path)
        assert waiter.waiting() == 1
        child.send("let go")

    def take() -> str:
        with FileLock(path, timeout=LIMIT):
            return "got it"

    assert run_forked(take) == "got it"
    wait_until(lambda: waiter.waiting() == 0 and descriptors(path) == 0, "the waiter to end")


def test_a_parked_waiter_is_taken_over_and_gets_the_lock(path: Path) -> None:
    with Child(lambda connection: hold_ours(path, connection)) as child:
        assert child.receive() == "held"
        give_up(path)
        wait_blocked(path)
        result: list[str] = []

        def wait() -> None:
            with FileLock(path, timeout=LIMIT):
                result.append("inside")

        thread = threading.Thread(target=wait)
        thread.start()
        wait_until(lambda: not waiter._parked, "the takeover")
        assert waiter.waiting() == 1
        child.send("let go")
        thread.join(LIMIT)
    assert result == ["inside"]
    assert waiter.waiting() == 0


def test_an_exclusive_waiter_is_not_taken_over_by_a_shared_one(path: Path) -> None:
    with Child(lambda connection: hold_ours(path, connection)) as child:
        assert child.receive() == "held"
        give_up(path)
        give_up(path, shared=True)
        assert waiter.waiting() == 2
        child.send("let go")
    wait_until(lambda: waiter.waiting() == 0, "both to end")


def test_as_many_wait_at_once_as_want_to(path: Path) -> None:
    done: list[int] = []

    def wait(number: int) -> None:
        with FileLock(path, timeout=LIMIT):
            done.append(number)

    with FileLock(path):
        threads = [threading.Thread(target=wait, args=(number,)) for number in range(5)]
        for thread in threads:
            thread.start()
        wait_blocked(path, 5)
        assert done == []
    for thread in threads:
        thread.join(LIMIT)
    assert sorted(done) == [0, 1, 2, 3, 4]


def test_a_waiter_abandoned_between_the_families_keeps_nobody_out(path: Path) -> None:
    with Child(lambda connection: hold_flock(path, connection)) as child:
        assert child.receive() == "held"
        waiting = start_wait(path)
        assert lockf_is_free(path) is False, "a waiter that is waited for keeps its place"
        assert waiter.walk_away(waiting)
        wait_blocked(path)  # it is still in the kernel
        assert lockf_is_free(path) is True
        child.send("let go")
    wait_until(lambda: waiter.waiting() == 0, "the waiter to end")


def start_wait(path: Path, granted: threading.Event | None = None) -> waiter.Waiter:
    """A waiter that is blocked for flock with the fcntl lock in hand."""
    fd = open_lock(path)
    event = granted or threading.Event()
    waiting = wait_for(fd, path, event)
    wait_until(lambda: waiting._has_first and blocked(path) == 1, "the wait for flock")
    return waiting


def wait_for(fd: int, path: Path, ended: threading.Event) -> waiter.Waiter:
    kept: list[waiter.Waiter | None] = []
    waiter.wait_for(linux, fd, linux.identify(fd, str(path)), str(path), False, ended.set, kept.append)
    assert kept[-1] is not None
    return kept[-1]


def open_lock(path: Path) -> int:
    fd = open_tracked(linux, str(path), 0o666)
    assert isinstance(fd, int)
    return fd


def test_a_waiter_taken_over_between_the_families_takes_both_in_order(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    for name in ("wait_first", "wait_second", "unlock_first", "unlock"):
        real = getattr(linux, name)
        monkeypatch.setattr(linux, name, lambda *args, name=name, real=real: (calls.append(name), real(*args))[1])
    with Child(lambda connection: hold_flock(path, connection)) as child:
        assert child.receive() == "held"
        assert waiter.walk_away(start_wait(path))
        granted = threading.Event()
        fd = open_lock(path)
        again = wait_for(fd, path, granted)
        assert waiter.waiting() == 1
        assert not granted.is_set()
        child.send("let go")
    assert granted.wait(LIMIT)
    assert calls == ["wait_first", "wait_second", "unlock_first", "unlock", "wait_first", "wait_second"]
    assert lockf_is_free(path) is False, "it was granted without the first family"
    assert not again.abandon(), "the wait has ended: the lock is the caller's"
    close_tracked(linux, again.handle)
    assert lockf_is_free(path) is True


def fail_to_start(monkeypatch: pytest.MonkeyPatch, error: BaseException, *, running: bool = False) -> None:
    """Make every start of a waiter's thread raise, after the thread began to run if ``running``."""
    real = threading.Thread.start

    def start(self: threading.Thread) -> None:
        if not self.name.startswith("sharedvol"):
            return real(self)
        if running:
            real(self)
        raise error

    monkeypatch.setattr(threading.Thread, "start", start)


@pytest.mark.parametrize("is_async", [False, True])
def test_without_a_thread_a_bounded_wait_still_ends(
    path: Path, monkeypatch: pytest.MonkeyPatch, is_async: bool
) -> None:
    fail_to_start(monkeypatch, RuntimeError("can't start new thread"))
    lock = FileLock(path, timeout=SHORT)
    with Child(lambda connection: hold_ours(path, connection)) as child:
        assert child.receive() == "held"
        for _ in range(3):
            with pytest.raises(LockTimeout):
                asyncio.run(acquire_and_release(lock)) if is_async else lock.acquire()
            assert waiter.waiting() == 0
            assert descriptors(path) == 1
        child.send("let go")


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("timeout", [LIMIT, None])
def test_without_a_thread_the_lock_is_got_when_it_is_freed(
    path: Path, monkeypatch: pytest.MonkeyPatch, is_async: bool, timeout: float | None
) -> None:
    fail_to_start(monkeypatch, RuntimeError("can't start new thread"))
    lock = FileLock(path, timeout=timeout)
    tried = threading.Event()
    real = linux.try_both
    tries = 0

    def try_both(*args: Any) -> bool:
        nonlocal tries
        tries += 1
        if tries > 3:
            tried.set()
        return real(*args)

    def wait() -> None:
        if is_async:
            asyncio.run(acquire_and_release(lock))
        else:
            lock.acquire()
            lock.release()

    with Child(lambda connection: hold_ours(path, connection)) as child:
        assert child.receive() == "held"
        monkeypatch.setattr(linux, "try_both", try_both)
        thread = threading.Thread(target=wait)
        thread.start()
        if is_async or timeout is not None:
            assert tried.wait(LIMIT), "it does not poll"
        assert thread.is_alive()
        child.send("let go")
        thread.join(LIMIT)
        assert not thread.is_alive()
    assert lockf_is_free(path)


async def acquire_and_release(lock: FileLock) -> None:
    async with lock:
        pass


def test_an_interrupt_while_the_thread_starts_leaves_nothing_locked(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = FileLock(path, timeout=LIMIT)
    with Child(lambda connection: hold_ours(path, connection)) as child:
        assert child.receive() == "held"
        fail_to_start(monkeypatch, KeyboardInterrupt(), running=True)
        with pytest.raises(KeyboardInterrupt):
            lock.acquire()
        child.send("let go")
    wait_until(lambda: waiter.waiting() == 0 and descriptors(path) == 0, "the thread to end")
    assert lockf_is_free(path)


def test_an_error_in_the_thread_reaches_the_waiter(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int, path: str, __: bool) -> None:
        raise LockFileError(37, "no locks available", path)

    monkeypatch.setattr(linux, "wait_second", fail)
    with Child(lambda connection: hold_ours(path, connection)) as child:
        assert child.receive() == "held"
        wait = FileLock(path, timeout=LIMIT)
        thread_error: list[BaseException] = []

        def acquire() -> None:
            try:
                wait.acquire()
            except LockFileError as error:
                thread_error.append(error)

        thread = threading.Thread(target=acquire)
        thread.start()
        wait_blocked(path)
        child.send("let go")
        thread.join(LIMIT)
    assert [str(error) for error in thread_error] == ["no locks available"]
    assert waiter.waiting() == 0
    assert lockf_is_free(path)


def test_a_waiter_that_is_parked_twice_has_one_owner(path: Path) -> None:
    """A signal handler that raises between the two halves of giving up makes it give up again."""
    with Child(lambda connection: hold_flock(path, connection)) as child:
        assert child.receive() == "held"
        abandoned = start_wait(path)
        assert waiter.walk_away(abandoned)
        assert waiter.walk_away(abandoned)
        first = wait_for(open_lock(path), path, threading.Event())
        second = wait_for(open_lock(path), path, threading.Event())
        assert first is abandoned
        assert second is not first
        assert waiter.walk_away(first)
        assert waiter.walk_away(second)
        child.send("let go")
    wait_until(lambda: waiter.waiting() == 0, "the waiters to end")
    assert waiter.walk_away(abandoned), "it ended after it was abandoned: its descriptor is not the caller's"


STOPPED = """
import sys, threading, time
from sharedvol import FileLock
from sharedvol.locks.file import fork, linux

closing = threading.Event()

def close(fd):
    linux.close = real
    closing.set()
    time.sleep(1000)

kept = FileLock(sys.argv[1])
kept.acquire()
handle, real = fork.open_tracked(linux, sys.argv[1], 0o666), linux.close
linux.close = close
threading.Thread(target=fork.close_tracked, args=(linux, handle), daemon=True).start()
closing.wait()
"""


def test_a_process_ends_though_a_waiting_thread_was_just_closing_its_descriptor(path: Path) -> None:
    assert run_python(STOPPED, str(path)) == ""
