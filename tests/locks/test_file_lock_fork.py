"""A forked child starts without its parent's locks, and can neither drop nor prolong them."""

from __future__ import annotations

import asyncio
import fcntl
import gc
import multiprocessing
import os
import signal
import threading
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
from support.processes import LIMIT, Child, blocked, descriptors, run_forked, wait_blocked

from sharedvol import FileLock, LockTimeout, NotLockedError, worker_token
from sharedvol.locks.file import linux, waiter

_FORK = os.fork
pytestmark = pytest.mark.usefixtures("any_fork")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "index.lock"


def takes(path: str | Path) -> bool:
    """Whether this process can take the lock now, by an object of its own."""
    try:
        FileLock(path, timeout=0).acquire()
    except LockTimeout:
        return False
    return True


def test_a_child_starts_without_the_lock_and_its_descriptors(path: Path) -> None:
    lock = FileLock(path)
    with lock:
        assert run_forked(lambda: (lock.held, descriptors(path), takes(path))) == (False, 0, False)
    assert run_forked(lambda: (lock.held, descriptors(path), takes(path))) == (False, 0, True)


def test_the_child_of_a_child_starts_without_it_too(path: Path) -> None:
    with FileLock(path) as lock:
        look = lambda: (lock.held, descriptors(path), takes(path))  # noqa: E731
        assert run_forked(lambda: run_forked(look)) == (False, 0, False)


def test_a_childs_release_leaves_its_parents_lock(path: Path) -> None:
    lock = FileLock(path)

    def release() -> str:
        lock.release()
        lock.release()  # it was taken twice
        try:
            lock.release()
        except NotLockedError:
            return "two, and no more"
        return "a third"

    with lock, lock:
        assert run_forked(release) == "two, and no more"
        assert run_forked(lambda: takes(path)) is False
        assert lock.held
    assert run_forked(lambda: takes(path)) is True


def test_a_child_that_leaves_the_block_leaves_its_parents_lock(path: Path) -> None:
    reader, writer = os.pipe()
    pid = -1
    try:
        with FileLock(path):
            pid = os.fork()
        if pid == 0:
            os.write(writer, b"free" if takes(path) else b"held")
            os._exit(0)
    except BaseException:
        if pid == 0:
            os._exit(1)
        raise
    os.close(writer)
    with os.fdopen(reader, "rb") as answer:
        assert answer.read() in (b"free", b"held")  # the parent leaves its block as well
    assert os.waitpid(pid, 0)[1] == 0


def test_a_child_that_leaves_the_block_first_leaves_its_parents_lock(path: Path) -> None:
    lock = FileLock(path)
    lock.acquire()

    def leave() -> bool:
        lock.__exit__(None, None, None)
        return takes(path)

    assert run_forked(leave) is False
    assert run_forked(lambda: takes(path)) is False
    lock.release()


def test_a_child_can_take_it_anew_inside_its_parents_block(path: Path) -> None:
    lock = FileLock(path, shared=True)
    with lock:

        def take() -> tuple[bool, bool, bool]:
            with lock:
                inside = lock.held
                with lock:
                    pass
                still = lock.held
            return inside, still, lock.held

        assert run_forked(take) == (True, True, False)
        assert lock.held


def test_a_child_waits_for_its_parent(path: Path) -> None:
    lock = FileLock(path)

    def wait(connection: Connection) -> None:
        with lock:
            connection.send("inside")

    with lock:
        child = Child(wait)
        wait_blocked(path)
        assert not child.connection.poll(0)
    with child:
        assert child.receive() == "inside"


@pytest.mark.parametrize("waiting", [False, True])
def test_a_killed_parent_frees_at_once_though_its_child_lives(path: Path, waiting: bool) -> None:
    def parent(connection: Connection) -> None:
        with FileLock(path):
            if waiting:
                threading.Thread(target=lambda: FileLock(path, timeout=LIMIT).acquire(), daemon=True).start()
                wait_blocked(path)
            pid = os.fork()
            if pid == 0:
                worker_token()  # a fork that Python did not see is noticed by the first use of anything
                connection.send(os.getpid())
                connection.recv()  # lives on, and waits for the end of the test
                os._exit(0)
            signal.pause()

    with Child(parent) as child:
        grandchild = os.pidfd_open(child.receive())
        try:
            assert run_forked(lambda: takes(path)) is False
            child.kill()
            signal.pidfd_send_signal(grandchild, 0)  # it lives
            assert run_forked(lambda: takes(path)) is True
        finally:
            signal.pidfd_send_signal(grandchild, signal.SIGKILL)
            os.close(grandchild)
    assert child.status == -signal.SIGKILL


def test_a_fork_beside_a_waiting_thread_takes_nothing_along(path: Path) -> None:
    lock = FileLock(path)
    outcome: list[str] = []

    def wait() -> None:
        with FileLock(path, timeout=LIMIT):
            outcome.append("inside")

    def look() -> tuple[bool, int, int]:
        return takes(path), descriptors(path), waiter.waiting()

    with lock:
        thread = threading.Thread(target=wait)
        thread.start()
        wait_blocked(path)
        assert descriptors(path) == 2
        assert run_forked(look) == (False, 0, 0)
        assert outcome == []
    thread.join(LIMIT)
    assert outcome == ["inside"], "the child took the place of its parent's waiter"


def test_a_child_can_wait_with_a_timeout_after_its_parent_did(path: Path) -> None:
    lock = FileLock(path)

    def wait() -> str:
        with pytest.raises(LockTimeout):
            lock.acquire(timeout=0.01)
        return f"{waiter.waiting()} waits"

    with lock:
        with pytest.raises(LockTimeout):
            FileLock(path, timeout=0.01).acquire()
        assert waiter.waiting() == 1
        assert run_forked(wait) == "1 waits"


# No hook holds back a fork that Python does not see: a descriptor of another thread may be open and not yet known.
@pytest.mark.parametrize("any_fork", ["seen"], indirect=True)
def test_a_fork_while_other_threads_lock_leaves_no_descriptor(path: Path) -> None:
    lock = FileLock(path)
    stop = threading.Event()

    def use() -> None:
        while not stop.is_set():
            with FileLock(path), pytest.raises(LockTimeout):
                FileLock(path).acquire(timeout=0)
            with lock:
                pass

    threads = [threading.Thread(target=use) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(40):
            assert run_forked(lambda: descriptors(path)) == 0
    finally:
        stop.set()
        for thread in threads:
            thread.join(LIMIT)


def test_a_fork_in_a_task_starts_without_the_tasks_lock(path: Path) -> None:
    lock = FileLock(path)

    def leave() -> tuple[bool, int, bool]:
        held = lock.held
        lock.release()
        return held, descriptors(path), takes(path)

    async def fork() -> object:
        async with lock:
            return run_forked(leave)

    assert asyncio.run(fork()) == (False, 0, False)


def test_a_pool_forked_under_the_lock_works(path: Path) -> None:
    with FileLock(path):
        context = multiprocessing.get_context("fork")
        with context.Pool(2) as pool:
            assert pool.map_async(takes, [str(path)] * 4).get(LIMIT) == [False] * 4
            pool.close()
            pool.join()
    with context.Pool(1) as pool:
        assert pool.apply_async(takes, [str(path)]).get(LIMIT) is True
        pool.close()
        pool.join()


def test_a_child_that_drops_what_its_parent_holds_leaves_lock_and_record(path: Path) -> None:
    locks = [FileLock(path, fenced=True, purpose="mine")]

    def drop() -> None:
        locks.clear()
        gc.collect()

    with locks[0]:
        run_forked(drop)
        assert run_forked(lambda: takes(path)) is False
        holder = FileLock(path).holder()
        assert holder is not None and holder.purpose == "mine"
        locks[0].check()


def test_a_child_that_drops_its_parents_wait_takes_nothing_from_it(path: Path) -> None:
    """The waiter of the parent has the first of the two locks in hand."""
    lock, outcome = FileLock(path), ["waits"]
    flock = path.open("w")
    fcntl.flock(flock, fcntl.LOCK_EX)

    async def wait() -> None:
        async with lock:
            outcome.append("inside")

    async def main() -> None:
        waiting = wait()
        task = asyncio.ensure_future(waiting)
        while blocked(path) < 1:
            await asyncio.sleep(0)
        run_forked(waiting.close)
        with path.open("r+") as other, pytest.raises(BlockingIOError):
            fcntl.lockf(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        flock.close()
        await asyncio.wait_for(task, LIMIT)

    asyncio.run(main())
    assert outcome == ["waits", "inside"]


def test_a_child_that_closed_everything_keeps_what_it_opened_since(path: Path) -> None:
    """As a daemon does; with C's fork nothing of ours has run before."""
    lock = FileLock(path)

    def use() -> bytes:
        os.close(number)
        other = os.open(path.with_name("data"), os.O_RDWR | os.O_CREAT)
        assert other == number
        assert not lock.held
        return os.read(other, 1)

    with lock:
        number = lock.fileno()
        if os.fork is not _FORK:
            assert run_forked(use) == b""
        lock.check()


def test_a_child_does_not_wait_for_a_thread_of_its_parent(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was opening a lock file, and Python held back no fork until it was ready."""
    inside, proceed, real = threading.Event(), threading.Event(), linux.open_lock_file

    def open_slowly(*args: Any) -> int:
        if threading.current_thread() is thread:
            inside.set()
            assert proceed.wait(LIMIT)
        return real(*args)

    monkeypatch.setattr(linux, "open_lock_file", open_slowly)
    thread = threading.Thread(target=FileLock(path.with_name("other.lock")).acquire)
    thread.start()
    assert inside.wait(LIMIT)
    if os.fork is _FORK:
        proceed.set()
    try:
        assert run_forked(lambda: takes(path)) is True
    finally:
        proceed.set()
        thread.join(LIMIT)
