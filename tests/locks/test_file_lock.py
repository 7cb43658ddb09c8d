"""What the file lock promises its own callers: who holds it, how often, and what it keeps open."""

from __future__ import annotations

import gc
import os
import pickle
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from support.processes import LIMIT, descriptors, is_free, run_python

from sharedvol import FileLock, LockTimeout, NotLockedError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "index.lock"


def in_thread(work: Callable[[], object]) -> None:
    """Run ``work`` in a thread to its end, and raise here what it raised there."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(LIMIT)
    assert not thread.is_alive()
    if errors:
        raise errors[0]


def test_a_with_block_holds_the_lock(path: Path) -> None:
    lock = FileLock(path)
    with lock as same:
        assert same is lock
        assert lock.held
        assert not is_free(path)
    assert not lock.held
    assert is_free(path)


def test_it_is_reentrant_and_the_last_release_frees(path: Path) -> None:
    lock = FileLock(path)
    with lock, lock:
        lock.acquire(timeout=0)
        lock.release()
        assert not is_free(path)
    assert is_free(path)


def test_what_acquire_returns_releases_once(path: Path) -> None:
    lock = FileLock(path)
    with lock.acquire() as same:
        assert same is lock
        assert not is_free(path)
    assert not lock.held
    assert is_free(path)


def test_an_exception_in_the_block_frees(path: Path) -> None:
    with pytest.raises(RuntimeError), FileLock(path):
        raise RuntimeError
    assert is_free(path)


def test_threads_exclude_each_other_on_one_object(path: Path) -> None:
    lock = FileLock(path)

    def other() -> None:
        assert not lock.held
        with pytest.raises(LockTimeout):
            lock.acquire(timeout=0)
        with pytest.raises(NotLockedError):
            lock.release()

    with lock:
        in_thread(other)
        assert lock.held
    in_thread(lambda: lock.acquire(timeout=0) and lock.release())


def test_no_two_threads_are_inside_at_once(path: Path) -> None:
    lock = FileLock(path)
    inside = 0
    most = 0
    barrier = threading.Barrier(6)

    def enter() -> None:
        nonlocal inside, most
        barrier.wait(LIMIT)
        for _ in range(50):
            with lock:
                inside += 1
                most = max(most, inside)
                os.sched_yield()
                inside -= 1

    threads = [threading.Thread(target=enter) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)
    assert (inside, most) == (0, 1)


def test_shared_holders_meet_and_exclude_an_exclusive_one(path: Path) -> None:
    lock = FileLock(path, shared=True)
    meeting = threading.Barrier(3)
    done = threading.Event()

    def hold() -> None:
        with lock:
            meeting.wait(LIMIT)  # passes only when both threads are inside
            assert done.wait(LIMIT)

    threads = [threading.Thread(target=hold) for _ in range(2)]
    for thread in threads:
        thread.start()
    meeting.wait(LIMIT)
    try:
        assert not is_free(path)
        assert is_free(path, shared=True)
    finally:
        done.set()
        for thread in threads:
            thread.join(LIMIT)
    assert is_free(path)
    with FileLock(path):
        assert not is_free(path, shared=True)


def test_a_release_without_a_hold_is_an_error(path: Path) -> None:
    lock = FileLock(path)
    with pytest.raises(NotLockedError, match="not held"):
        lock.release()
    with lock:
        pass
    with pytest.raises(NotLockedError):
        lock.release()
    with pytest.raises(NotLockedError):
        lock.fileno()


def test_a_dropped_lock_is_freed_at_once(path: Path) -> None:
    lock = FileLock(path)
    lock.acquire()
    assert descriptors(path) == 1
    gc.disable()  # not even a collection is needed
    try:
        del lock
        assert descriptors(path) == 0
    finally:
        gc.enable()
    assert is_free(path)


def test_one_descriptor_is_kept_between_uses(path: Path) -> None:
    lock = FileLock(path)
    assert descriptors(path) == 0
    for _ in range(3):
        with lock, lock:
            assert descriptors(path) == 1
            with pytest.raises(LockTimeout):
                in_thread(lambda: lock.acquire(timeout=0))
        assert descriptors(path) == 1


def test_the_descriptor_is_not_inherited(path: Path) -> None:
    with FileLock(path) as lock:
        assert not os.get_inheritable(lock.fileno())


def test_pickled_locks_are_fresh(path: Path) -> None:
    lock = FileLock(path, timeout=0, shared=True, mode=0o640)
    with lock:
        copy = pickle.loads(pickle.dumps(lock))
        assert (copy.path, copy.timeout, copy.shared, copy.held) == (path, 0, True, False)
        assert copy._mode == 0o640


def test_a_lock_sent_to_a_spawned_process_excludes_its_sender(path: Path) -> None:
    lock = FileLock(path, timeout=0)
    code = (
        "import pickle, sys, sharedvol\n"
        "lock = pickle.loads(bytes.fromhex(sys.argv[1]))\n"
        "try:\n    lock.acquire(); print('got it')\nexcept sharedvol.LockTimeout: print('held')"
    )
    sent = pickle.dumps(lock).hex()
    with lock:
        assert run_python(code, sent) == "held"
    assert run_python(code, sent) == "got it"


def test_repr_tells_the_path_and_who_holds(path: Path) -> None:
    lock = FileLock(path, shared=True)
    assert repr(lock) == f"<shared FileLock {str(path)!r} not held here>"
    with lock:
        assert repr(lock) == f"<shared FileLock {str(path)!r} held here>"
