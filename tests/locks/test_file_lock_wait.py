"""How a wait for the file lock ends: with the lock, its timeout, a refusal or an interrupt."""

from __future__ import annotations

import math
import os
import pickle
import signal
import sys
import threading
from multiprocessing.connection import Connection
from pathlib import Path

import filelock
import pytest
from support.processes import LIMIT, Child, is_free, run_forked, wait_blocked

from sharedvol import FileLock, LockDeadlockError, LockTimeout, SharedVolError

SHORT = 0.02
"""Seconds of a wait that is meant to end without the lock."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "index.lock"


@pytest.mark.parametrize("timeout", [-1, -0.001, math.nan, math.inf, -math.inf])
def test_a_senseless_timeout_is_refused(path: Path, timeout: float) -> None:
    with pytest.raises(ValueError, match="timeout"):
        FileLock(path, timeout=timeout)
    with pytest.raises(ValueError, match="timeout"):
        FileLock(path).acquire(timeout=timeout)
    assert not path.exists()


@pytest.mark.parametrize("timeout", [0, 0.0, SHORT])
def test_a_wait_ends_with_its_timeout(path: Path, timeout: float) -> None:
    with FileLock(path):

        def attempt() -> tuple[str, float]:
            lock = FileLock(path, timeout=timeout)
            with pytest.raises(LockTimeout) as caught:
                lock.acquire()
            assert not lock.held
            return str(caught.value), caught.value.waited

        message, waited = run_forked(attempt)
    assert str(path) in message
    assert ("not waiting" in message) == (timeout == 0)
    assert waited == timeout
    assert is_free(path)


def test_acquire_overrides_the_locks_timeout(path: Path) -> None:
    patient, hasty = FileLock(path), FileLock(path, timeout=0)
    assert (patient.timeout, hasty.timeout) == (None, 0)
    with FileLock(path):
        with pytest.raises(LockTimeout):
            patient.acquire(timeout=SHORT)
        with pytest.raises(LockDeadlockError):
            hasty.acquire(timeout=None)
        with pytest.raises(LockTimeout):
            hasty.acquire()


@pytest.mark.parametrize("timeout", [None, LIMIT])
def test_a_waiter_gets_the_lock_when_it_is_freed(path: Path, timeout: float | None) -> None:
    def wait(connection: Connection) -> None:
        with FileLock(path, timeout=timeout):
            connection.send("inside")

    with FileLock(path) as lock, Child(wait) as child:
        wait_blocked(path)
        assert not child.connection.poll(0)
        lock.release()
        assert child.receive() == "inside"
        child.wait()
        lock.acquire(timeout=LIMIT)


def test_a_timeout_is_of_all_three_kinds_and_can_be_pickled(path: Path) -> None:
    error = LockTimeout(str(path), 1.5)
    assert isinstance(error, filelock.Timeout)
    assert isinstance(error, TimeoutError)
    assert isinstance(error, SharedVolError)
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is LockTimeout
    assert (copy.lock_file, copy.waited, str(copy)) == (str(path), 1.5, str(error))
    assert "1.5 s" in str(copy)


def test_waiting_for_oneself_is_refused(path: Path) -> None:
    with FileLock(path), pytest.raises(LockDeadlockError, match="share one object"):
        FileLock(path).acquire()
    assert is_free(path)
    with FileLock(path, shared=True), pytest.raises(LockDeadlockError):
        FileLock(path).acquire()
    assert is_free(path)


def test_waiting_for_oneself_is_seen_while_other_threads_make_locks(path: Path) -> None:
    interval = sys.getswitchinterval()
    stop = threading.Event()

    def make_locks() -> None:
        while not stop.is_set():
            kept = [FileLock(path) for _ in range(50)]
            del kept

    maker = threading.Thread(target=make_locks)
    keep = [FileLock(path) for _ in range(300)]
    maker.start()
    sys.setswitchinterval(1e-6)  # a switch of threads at every step, not every 5 ms
    try:
        with keep[0]:
            for _ in range(300):
                with pytest.raises(LockDeadlockError):
                    keep[1].acquire()
    finally:
        sys.setswitchinterval(interval)
        stop.set()
        maker.join(LIMIT)


def test_an_interrupt_during_a_wait_leaves_nothing_locked(path: Path) -> None:
    for timeout in (None, LIMIT):

        def wait(connection: Connection, timeout: float | None = timeout) -> None:
            lock = FileLock(path, timeout=timeout)
            connection.send("ready")
            try:
                lock.acquire()
            except KeyboardInterrupt:
                connection.send((lock.held, connection.recv()))
                # Had the wait kept anything, this process could not get the lock through another object.
                with FileLock(path, timeout=LIMIT):
                    connection.send("free")
                connection.recv()

        lock = FileLock(path)
        lock.acquire()  # before the child begins, which must not be first
        with Child(wait) as child:
            assert child.receive() == "ready"
            wait_blocked(path)
            os.kill(child.pid, signal.SIGINT)
            child.send("interrupted")
            assert child.receive() == (False, "interrupted")
            lock.release()
            assert child.receive() == "free"
            with lock.acquire(timeout=LIMIT):
                child.send("end")
