"""The file lock where the kernel has no open file description locks: filelock's native lock stands in."""

from __future__ import annotations

import asyncio
import errno
import threading
from pathlib import Path

import filelock
import pytest
from support.processes import LIMIT, run_forked, wait_until

from sharedvol import FileLock, LockFileError, LockTimeout, NotLockedError
from sharedvol.locks.file import portable, waiter

SHORT = 0.02
"""Seconds of a wait that is meant to end without the lock."""


@pytest.fixture(autouse=True)
def no_open_file_description_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FileLock, "_backend", portable)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "index.lock"


def is_free(path: Path) -> bool:
    """Whether another process could take the lock now."""

    def look() -> bool:
        try:
            filelock.FileLock(path).acquire(timeout=0)
        except filelock.Timeout:
            return False
        return True

    return bool(run_forked(look))


def test_it_excludes_and_frees(path: Path) -> None:
    lock = FileLock(path)
    with lock:
        assert lock.held
        assert not is_free(path)
    assert not lock.held
    assert is_free(path)
    with pytest.raises(NotLockedError):
        lock.release()


def test_it_is_reentrant(path: Path) -> None:
    lock = FileLock(path)
    with lock, lock:
        lock.acquire()
        lock.release()
        assert not is_free(path)
    assert is_free(path)


def test_it_excludes_threads(path: Path) -> None:
    lock = FileLock(path)
    inside = most = 0

    def enter(timeout: float | None) -> None:
        nonlocal inside, most
        for _ in range(10):
            with lock.acquire(timeout=timeout):
                inside += 1
                most = max(most, inside)
                inside -= 1

    threads = [threading.Thread(target=enter, args=(timeout,)) for timeout in (None, LIMIT, LIMIT)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)
        assert not thread.is_alive()
    assert (inside, most) == (0, 1)
    assert is_free(path)


@pytest.mark.parametrize("timeout", [0, SHORT])
@pytest.mark.parametrize("is_async", [False, True])
def test_a_wait_ends_with_its_timeout(path: Path, timeout: float, is_async: bool) -> None:
    lock = FileLock(path, timeout=timeout)

    async def wait() -> None:
        async with lock:
            pytest.fail("held")

    with FileLock(path):
        for _ in range(3):
            with pytest.raises(LockTimeout) as caught:
                asyncio.run(wait()) if is_async else lock.acquire()
            assert caught.value.waited == timeout
            assert waiter.waiting() <= 1
    wait_until(lambda: waiter.waiting() == 0, "the waiter to end")
    with lock.acquire(timeout=LIMIT):
        assert not is_free(path)


def test_a_dead_holder_frees(path: Path) -> None:
    def hold_and_die() -> bool:
        FileLock(path).acquire()
        return True

    assert run_forked(hold_and_die)
    with FileLock(path, timeout=0) as lock:
        assert lock.held


def test_the_file_stays(path: Path) -> None:
    lock = FileLock(path)
    with lock:
        pass
    del lock
    assert path.exists()


def test_a_shared_lock_is_refused(path: Path) -> None:
    lock = FileLock(path, shared=True)
    with pytest.raises(LockFileError, match="no open file description locks; use Linux, or shared=False") as caught:
        lock.acquire()
    assert caught.value.errno == errno.EOPNOTSUPP
    assert not lock.held
    with FileLock(path, timeout=0):
        pass


def test_there_is_no_descriptor_to_hand_on(path: Path) -> None:
    with FileLock(path) as lock, pytest.raises(NotLockedError, match="descriptor"):
        lock.fileno()


def test_a_file_in_the_directorys_place_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(LockFileError, match="cannot lock") as caught:
        FileLock(tmp_path / "file" / "index.lock", timeout=0).acquire()
    assert caught.value.filename == str(tmp_path / "file" / "index.lock")


def test_a_child_neither_holds_nor_drops_its_parents_lock(path: Path) -> None:
    lock = FileLock(path)
    with lock:
        assert run_forked(lambda: lock.held) is False
        assert run_forked(lambda: lock.release()) is None
        assert not is_free(path)
    assert is_free(path)
