"""The file lock in asyncio: a task holds it, and waiting stops no other task."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from support.processes import LIMIT, Child, blocked, descriptors, is_free

from sharedvol import FileLock, LockDeadlockError, LockTimeout, NotLockedError
from sharedvol.locks.file import waiter

SHORT = 0.02
"""Seconds of a wait that is meant to end without the lock."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "index.lock"


def hold(path: Path) -> Callable[[Connection], None]:
    """Work for a child: take the lock, and free it when told."""

    def work(connection: Connection) -> None:
        with FileLock(path):
            connection.send("held")
            connection.recv()

    return work


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop run until ``condition`` is true."""
    async with asyncio.timeout(LIMIT):
        while not condition():
            await asyncio.sleep(0.001)


async def test_tasks_of_one_loop_exclude_each_other(path: Path) -> None:
    lock = FileLock(path)
    inside = most = 0

    async def enter() -> None:
        nonlocal inside, most
        for _ in range(20):
            async with lock:
                inside += 1
                most = max(most, inside)
                await asyncio.sleep(0)
                inside -= 1

    await asyncio.wait_for(asyncio.gather(*(enter() for _ in range(6))), LIMIT)
    assert (inside, most) == (0, 1)
    assert is_free(path)


async def test_it_is_reentrant_for_its_task(path: Path) -> None:
    lock = FileLock(path)
    async with lock, lock as same:
        assert same is lock
        async with await lock.acquire_async(timeout=0) as again:
            assert again is lock
        assert lock.held
        assert not is_free(path)
    assert not lock.held
    assert is_free(path)


async def test_another_task_does_not_hold_it(path: Path) -> None:
    lock = FileLock(path)

    async def other() -> None:
        assert not lock.held
        with pytest.raises(NotLockedError):
            lock.release()
        with pytest.raises(LockTimeout):
            await lock.acquire_async(timeout=0)

    async with lock:
        await asyncio.create_task(other())
        assert lock.held


@pytest.mark.parametrize("timeout", [None, LIMIT])
async def test_waiting_for_another_process_does_not_stop_the_loop(path: Path, timeout: float | None) -> None:
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0)

    with Child(hold(path)) as child:
        assert child.receive() == "held"
        ticker = asyncio.create_task(tick())
        waiting = asyncio.create_task(FileLock(path, timeout=timeout).acquire_async())
        await until(lambda: blocked(path) == 1)
        before = ticks
        await until(lambda: ticks > before + 100)
        assert not waiting.done()
        child.send("let go")
        held = await asyncio.wait_for(waiting, LIMIT)
        ticker.cancel()
    assert not is_free(path)
    del held, waiting


async def test_a_wait_ends_with_its_timeout(path: Path) -> None:
    with Child(hold(path)) as child:
        assert child.receive() == "held"
        lock = FileLock(path, timeout=SHORT)
        for timeout, expected in ((SHORT, SHORT), (0, 0)):
            with pytest.raises(LockTimeout) as caught:
                await lock.acquire_async(timeout=timeout)
            assert caught.value.waited == expected
        with pytest.raises(LockTimeout):
            async with lock:
                pytest.fail("held by another process")
        with pytest.raises(ValueError, match="timeout"):
            await lock.acquire_async(timeout=-1)
        child.send("let go")
        child.wait()
        async with await lock.acquire_async(timeout=LIMIT):
            assert lock.held


async def test_a_cancelled_wait_gives_up_its_place(path: Path) -> None:
    lock = FileLock(path)
    with Child(hold(path)) as child:
        assert child.receive() == "held"
        waiting = asyncio.create_task(lock.acquire_async())
        await until(lambda: blocked(path) == 1)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        child.send("let go")
        child.wait()
        await until(lambda: waiter.waiting() == 0)
    assert is_free(path)
    assert descriptors(path) == 0


async def test_a_grant_that_races_with_a_cancellation_is_dropped(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    granted = threading.Event()
    finish = waiter.Waiter._finish

    def announced(self: waiter.Waiter) -> bool:
        try:
            return finish(self)
        finally:
            granted.set()

    monkeypatch.setattr(waiter.Waiter, "_finish", announced)
    lock = FileLock(path)
    with Child(hold(path)) as child:
        assert child.receive() == "held"
        waiting = asyncio.create_task(lock.acquire_async())
        await until(lambda: blocked(path) == 1)
        child.send("let go")
        # The loop stands still, so the task cannot hear of the grant before it is cancelled.
        assert granted.wait(LIMIT)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    assert not lock.held
    assert is_free(path)
    async with await lock.acquire_async(timeout=0):
        assert not is_free(path)


async def test_a_cancelled_holder_frees(path: Path) -> None:
    inside = asyncio.Event()

    async def stay() -> None:
        async with FileLock(path):
            inside.set()
            await asyncio.sleep(LIMIT)

    task = asyncio.create_task(stay())
    await asyncio.wait_for(inside.wait(), LIMIT)
    assert not is_free(path)
    task.cancel()
    await asyncio.wait([task], timeout=LIMIT)
    assert task.cancelled()
    assert is_free(path)


async def test_waiting_for_ones_own_task_or_thread_is_refused(path: Path) -> None:
    async with FileLock(path):
        with pytest.raises(LockDeadlockError):
            await FileLock(path).acquire_async()
        with pytest.raises(LockDeadlockError):
            FileLock(path).acquire()
    with FileLock(path), pytest.raises(LockDeadlockError):
        await FileLock(path).acquire_async()
    assert is_free(path)


async def test_a_task_and_its_thread_are_two_holders(path: Path) -> None:
    lock = FileLock(path)
    async with lock:
        with pytest.raises(LockTimeout):
            lock.acquire(timeout=0)
    with lock:
        with pytest.raises(LockTimeout):
            await lock.acquire_async(timeout=0)
        with pytest.raises(LockDeadlockError):
            await lock.acquire_async()
    assert is_free(path)


async def test_a_task_lets_go_of_its_own_hold_not_of_its_threads(path: Path) -> None:
    lock = FileLock(path, shared=True)

    async def visit() -> None:
        async with lock:
            pass
        async with await lock.acquire_async():
            pass

    with lock:  # of the thread
        await asyncio.create_task(visit())
        assert lock.held
        assert not is_free(path)
        async with lock:
            pass
        assert not is_free(path)
    assert not lock.held
    assert is_free(path)


async def test_sync_waiting_in_a_thread_is_served_by_a_task(path: Path) -> None:
    lock = FileLock(path)

    def wait() -> None:
        with lock:
            pass

    async with lock:
        waiting = asyncio.create_task(asyncio.to_thread(wait))
        await until(lambda: blocked(path) == 1)
        assert not waiting.done()
    await asyncio.wait_for(waiting, LIMIT)
    assert is_free(path)


def test_a_loop_that_ends_while_a_task_waits_leaves_nothing(path: Path) -> None:
    async def start() -> None:
        waiting = asyncio.create_task(FileLock(path).acquire_async())
        await until(lambda: blocked(path) == 1)
        assert not waiting.done()

    with Child(hold(path)) as child:
        assert child.receive() == "held"
        asyncio.run(start())
        child.send("let go")
        child.wait()
    asyncio.run(until(lambda: waiter.waiting() == 0))
    gc.collect()
    assert is_free(path)


def test_outside_a_task_is_an_error(path: Path) -> None:
    waiting = FileLock(path).acquire_async()
    with pytest.raises(RuntimeError):
        waiting.send(None)
    assert not path.exists()
