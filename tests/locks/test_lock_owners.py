"""Whose a hold is: of what acquire returned, and of the thread or task that called it."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import contextvars
import gc
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import Depends, FastAPI
from support.processes import LIMIT, Child, is_free, run_forked, run_python, wait_until

from sharedvol import FileLock, LockDeadlockError, LockTimeout, NotLockedError, Semaphore
from sharedvol.locks.file.owners import OwnerTable
from sharedvol.locks.grant import Grant
from sharedvol.locks.held import AcquiredLock

Lock = FileLock | Semaphore
KINDS = ("plain", "fenced", "shared", "semaphore")


@pytest.fixture(params=KINDS)
def lock(request: pytest.FixtureRequest, tmp_path: Path) -> Lock:
    path = tmp_path / "x"
    if request.param == "semaphore":
        return Semaphore(path, 1)
    return FileLock(f"{path}.0.lock", fenced=request.param == "fenced", shared=request.param == "shared")


def free(lock: Lock) -> bool:
    """Whether another process could have it for itself."""
    return is_free(f"{lock.path}.0.lock" if isinstance(lock, Semaphore) else lock.path)


def in_thread(work: Callable[[], Any]) -> Any:
    """What ``work`` returns in a thread that ends after it."""
    outcome: list[Any] = []
    thread = threading.Thread(target=lambda: outcome.append(work()))
    thread.start()
    thread.join(LIMIT)
    return outcome[0]


class Pool:
    """Threads that live until the end of the test; each piece of work has a context of its own, as frameworks do it."""

    def __init__(self, threads: int) -> None:
        self._threads = [ThreadPoolExecutor(1) for _ in range(threads)]

    def run(self, thread: int, work: Callable[[], Any]) -> Any:
        """What ``work`` returns in a thread, by its number."""
        return self.start(thread, work).result(LIMIT)

    def start(self, thread: int, work: Callable[[], Any]) -> Any:
        """The future of that."""
        return self._threads[thread].submit(contextvars.copy_context().run, work)


@pytest.fixture
def pool() -> Iterator[Pool]:
    pool = Pool(2)
    yield pool
    for one in pool._threads:
        one.shutdown()


# What acquire returned.


def test_it_releases_in_any_thread_once(lock: Lock) -> None:
    acquired = lock.acquire()
    in_thread(acquired.release)
    assert not lock.held
    assert free(lock)
    with pytest.raises(NotLockedError):
        acquired.release()


def test_the_end_of_its_block_releases_in_any_thread(lock: Lock, pool: Pool) -> None:
    def dependency() -> Iterator[None]:
        with lock.acquire():
            yield

    running = dependency()
    pool.run(0, lambda: next(running))
    assert not free(lock)
    pool.run(1, lambda: next(running, None))
    assert free(lock)


def test_only_its_own_acquire_is_undone(tmp_path: Path) -> None:
    lock = FileLock(tmp_path / "x.lock")
    first, second = lock.acquire(), lock.acquire()
    in_thread(first.release)
    with pytest.raises(NotLockedError):
        first.release()
    assert lock.held
    assert not free(lock)
    lock.release()
    assert free(lock)
    with lock, pytest.raises(NotLockedError):
        second.release()  # that hold was released, and this is another


def test_a_release_by_the_lock_is_still_for_the_thread_that_acquired(lock: Lock) -> None:
    acquired = lock.acquire()
    with pytest.raises(NotLockedError, match="acquire"):
        in_thread_raising(lock.release)
    assert not free(lock)
    acquired.release()


def in_thread_raising(work: Callable[[], Any]) -> None:
    with ThreadPoolExecutor(1) as one:
        one.submit(work).result(LIMIT)


@pytest.mark.usefixtures("any_fork")
def test_in_a_forked_child_it_releases_nothing(lock: Lock) -> None:
    acquired = lock.acquire()

    def leave() -> None:
        with acquired:
            pass

    run_forked(leave)
    assert not free(lock)
    acquired.release()


# Several threads at one hold.


def meanwhile(monkeypatch: pytest.MonkeyPatch, name: str, work: Callable[[], object]) -> threading.Thread:
    """At the next call of a method of `Grant`, run ``work`` in another thread: as far as it comes before the call."""
    real, thread = getattr(Grant, name), threading.Thread(target=work)

    def between(self: Grant, *args: Any) -> Any:
        monkeypatch.setattr(Grant, name, real)
        thread.start()
        thread.join(0.05)  # it may have to wait for this call
        return real(self, *args)

    monkeypatch.setattr(Grant, name, between)
    return thread


def test_its_owner_is_inside_whichever_thread_releases_at_that_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = FileLock(tmp_path / "x.lock")
    thread = meanwhile(monkeypatch, "add", lock.acquire().release)
    with lock:
        thread.join(LIMIT)
        assert not free(lock)
    assert free(lock)


def test_two_releases_at_one_moment_free_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = FileLock(tmp_path / "x.lock")
    first, second = lock.acquire(), lock.acquire()
    thread = meanwhile(monkeypatch, "undo", first.release)
    second.release()
    thread.join(LIMIT)
    assert not lock.held
    assert free(lock)


def test_a_release_of_what_another_thread_just_released_is_refused(lock: Lock, monkeypatch: pytest.MonkeyPatch) -> None:
    acquired, kind = lock.acquire(), type(lock._permits[0] if isinstance(lock, Semaphore) else lock._own)
    undo = kind.undo

    def after(*args: Any, **options: Any) -> Any:
        monkeypatch.setattr(kind, "undo", undo)
        in_thread(acquired.release)
        return undo(*args, **options)

    monkeypatch.setattr(kind, "undo", after)
    with pytest.raises(NotLockedError):
        lock.release()
    assert free(lock)


@pytest.mark.parametrize("kind", ["plain", "fenced", "shared"])
def test_two_releases_of_one_object_undo_one_acquire(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    lock = FileLock(tmp_path / "x.lock", fenced=kind == "fenced", shared=kind == "shared")
    acquired, other = lock.acquire(), lock.acquire()
    undo = OwnerTable.undo

    def after(*args: Any, **options: Any) -> Any:
        monkeypatch.setattr(OwnerTable, "undo", undo)
        in_thread(acquired.release)  # between the two looks of the release below
        return undo(*args, **options)

    monkeypatch.setattr(OwnerTable, "undo", after)
    with pytest.raises(NotLockedError):
        acquired.release()
    assert lock.held
    assert not free(lock)
    other.release()
    assert free(lock)


# The end of a block.


def end_another(lock: Lock, enter: Callable[[], Any]) -> tuple[Any, type[BaseException]]:
    """What ``enter`` made in another thread, after a block here was released inside, which then ended in the error."""
    made: list[Any] = []
    try:
        with lock:
            lock.release()
            made.append(in_thread(enter))
    except NotLockedError as error:
        return made[0], type(error)
    raise AssertionError("it ended without an error")


@pytest.mark.parametrize("kind", ["with", "stack", "acquire"])
def test_the_end_of_a_block_does_not_release_the_hold_of_another_thread(lock: Lock, kind: str) -> None:
    def block() -> Iterator[None]:
        with lock:
            yield

    def enter() -> Any:
        if kind == "acquire":
            return lock.acquire()
        if kind == "with":
            running = block()
            next(running)
            return running
        stack = ExitStack()
        stack.enter_context(lock)
        return stack

    made, error = end_another(lock, enter)
    assert error is NotLockedError
    assert not free(lock)
    del made


def test_the_end_of_a_block_releases_what_was_acquired_again_inside(lock: Lock) -> None:
    with lock:
        lock.release()
        assert free(lock)
        lock.acquire()
        assert not free(lock)
    assert free(lock)


@pytest.mark.usefixtures("any_fork")
def test_a_child_that_leaves_its_parents_block_releases_nothing_of_its_own(lock: Lock) -> None:
    def block() -> Iterator[None]:
        with lock:
            yield

    running = block()
    next(running)

    def leave(connection: Any) -> None:
        connection.recv()
        stack = in_thread(enter_by_a_stack)
        next(running, None)
        connection.send(free(lock))
        stack.close()

    def enter_by_a_stack() -> ExitStack:
        stack = ExitStack()
        stack.enter_context(lock)
        return stack

    with Child(leave) as child:
        next(running, None)
        child.send("left")
        assert child.receive() is False


class Guard:
    """As libraries wrap a lock: its methods have no frame that lives as long as the block."""

    def __init__(self, lock: Lock) -> None:
        self.lock = lock

    def __enter__(self) -> None:
        self.lock.__enter__()

    def __exit__(self, *error: Any) -> None:
        self.lock.__exit__(*error)


def test_a_wrapper_releases_the_permit_of_its_thread(tmp_path: Path, pool: Pool) -> None:
    semaphore = Semaphore(tmp_path / "x", 2)
    for _ in range(20):
        first, second = Guard(semaphore), Guard(semaphore)
        pool.run(0, first.__enter__)
        pool.run(1, second.__enter__)
        permit = pool.run(1, lambda: semaphore.permit)
        pool.run(0, lambda guard=first: guard.__exit__(None, None, None))
        assert pool.run(1, lambda: semaphore.permit) == permit
        pool.run(1, lambda guard=second: guard.__exit__(None, None, None))


# A hold that no caller and no object has.


def test_it_is_freed_when_its_thread_ends_and_it_is_collected(lock: Lock) -> None:
    in_thread(lambda: lock.acquire() and None)
    assert free(lock)


def test_it_is_kept_as_long_as_what_acquire_returned(lock: Lock) -> None:
    kept = [in_thread(lock.acquire)]
    gc.collect()
    assert not free(lock)
    kept.clear()
    gc.collect()
    assert free(lock)


def test_it_is_kept_as_long_as_its_thread(lock: Lock, pool: Pool) -> None:
    def acquire() -> None:
        lock.acquire()

    pool.run(0, acquire)
    gc.collect()
    assert not free(lock)
    pool.run(0, lock.release)  # in another context
    assert free(lock)


def test_a_block_that_outlives_its_thread_is_kept_and_ended_anywhere(lock: Lock) -> None:
    def dependency() -> Iterator[None]:
        with lock:
            yield

    running = [dependency()]
    in_thread(lambda: next(running[0]))
    gc.collect()
    assert not free(lock)
    running.clear()  # which ends its block
    gc.collect()
    assert free(lock)


async def test_it_is_freed_when_its_task_ends_and_it_is_collected(lock: Lock) -> None:
    async def take() -> None:
        await lock.acquire_async()

    await asyncio.create_task(take())
    await asyncio.sleep(0)
    assert free(lock)


async def test_who_waits_gets_what_a_task_left_at_once(lock: Lock) -> None:
    async def take() -> None:
        await lock.acquire_async()

    await asyncio.create_task(take())
    async with asyncio.timeout(LIMIT), lock:
        assert lock.held


def test_a_thread_whose_object_nothing_keeps_leaves_it_free(lock: Lock) -> None:
    native, done = [], threading.Event()

    def take() -> None:
        native.append(threading.get_native_id())
        lock.acquire()
        done.set()

    threading.Thread(target=take).start()
    assert done.wait(LIMIT)
    wait_until(lambda: not Path(f"/proc/self/task/{native[0]}").exists(), "the thread to end")
    assert free(lock)


def test_a_task_that_is_destroyed_before_it_is_done_leaves_it_free(lock: Lock) -> None:
    async def take() -> None:
        await lock.acquire_async()
        await asyncio.Event().wait()

    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda loop, context: None)  # which says that a task was destroyed
    tasks = [loop.create_task(take())]
    loop.run_until_complete(asyncio.sleep(0))
    loop.run_until_complete(asyncio.sleep(0))
    assert not free(lock)
    loop.close()
    tasks.clear()
    del loop
    gc.collect()
    assert free(lock)


@pytest.mark.usefixtures("any_fork")
def test_a_child_leaves_the_block_of_its_parent_where_another_thread_had_a_lock(lock: Lock, tmp_path: Path) -> None:
    """The child drops that thread, and with it what watches its end, before Python runs the hooks of a fork."""
    other, used, end = FileLock(tmp_path / "other.lock"), threading.Event(), threading.Event()

    def use() -> None:
        other.acquire().release()
        used.set()
        end.wait()

    def block() -> Iterator[None]:
        with lock:
            yield

    thread = threading.Thread(target=use)
    thread.start()
    assert used.wait(LIMIT)
    running = block()
    next(running)
    assert run_forked(lambda: next(running, None)) is None
    assert not free(lock)
    next(running, None)
    end.set()
    thread.join(LIMIT)


def test_a_block_that_an_interrupt_cut_short_ends_with_its_thread(lock: Lock, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut(*_: Any) -> None:
        raise KeyboardInterrupt

    def work() -> None:
        with pytest.raises(KeyboardInterrupt), lock:
            pass

    monkeypatch.setattr(type(lock), "__exit__", cut)
    in_thread(work)
    assert free(lock)


def test_a_block_of_a_generator_that_is_never_closed_ends_with_its_loop(lock: Lock) -> None:
    async def block() -> AsyncIterator[None]:
        async with lock:
            yield

    async def enter() -> None:
        await anext(running[0])

    running, loop = [block()], asyncio.new_event_loop()
    loop.run_until_complete(enter())
    assert not free(lock)
    loop.close()  # so that nothing is left that could close the generator
    assert_held_by_another(lock)
    running.clear()
    gc.collect()
    if isinstance(lock, Semaphore):
        Semaphore(lock.path, 1, timeout=0).acquire().release()
    else:
        FileLock(lock.path, timeout=0).acquire().release()
    assert free(lock)


def assert_held_by_another(lock: Lock) -> None:
    with pytest.raises(LockTimeout):
        if isinstance(lock, Semaphore):
            Semaphore(lock.path, 1).acquire(timeout=0)
        else:
            FileLock(lock.path).acquire(timeout=0)


def test_an_interrupt_while_it_is_collected_does_not_keep_it(lock: Lock, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: Any) -> None:
        with contextlib.suppress(KeyboardInterrupt):  # as Python does in a finaliser, which prints it
            raise KeyboardInterrupt

    monkeypatch.setattr(AcquiredLock, "__del__", interrupted)
    in_thread(lambda: lock.acquire() and None)
    assert free(lock)


# Threads of a pool.


def test_one_request_does_not_enter_with_the_hold_of_another(tmp_path: Path, pool: Pool) -> None:
    """Both began in the same thread of the pool."""
    lock = FileLock(tmp_path / "x.lock", timeout=LIMIT)
    events: list[str] = []

    def request(name: str) -> Iterator[None]:
        with lock:
            events.append(f"{name} in")
            yield
            events.append(f"{name} out")

    first, second = request("first"), request("second")
    pool.run(0, lambda: next(first))
    with pytest.raises(LockTimeout):
        pool.run(0, lambda: lock.acquire(timeout=0))
    waiting = pool.start(0, lambda: next(second))
    pool.run(1, lambda: next(first, None))
    waiting.result(LIMIT)
    pool.run(1, lambda: next(second, None))
    assert events == ["first in", "first out", "second in", "second out"]
    assert free(lock)


def test_in_one_request_it_is_reentrant(tmp_path: Path, pool: Pool) -> None:
    lock = FileLock(tmp_path / "x.lock", timeout=0)

    def request() -> None:
        with lock, lock.acquire(), ExitStack() as stack:
            stack.enter_context(lock)
            contextvars.copy_context().run(lock.acquire).release()

    pool.run(0, request)
    assert free(lock)


def test_within_a_block_it_is_reentrant_in_any_context(tmp_path: Path) -> None:
    lock, before = FileLock(tmp_path / "x.lock"), contextvars.copy_context()

    def inner() -> bool:
        with lock:
            return not free(lock)

    def deadlock() -> None:
        with pytest.raises(LockDeadlockError):
            FileLock(lock.path).acquire()

    with lock:
        assert before.run(inner)
        before.run(deadlock)
        assert not free(lock)
    assert free(lock)


def test_each_block_gives_back_its_own_permit(tmp_path: Path, pool: Pool) -> None:
    semaphore = Semaphore(tmp_path / "x", 2)

    def request() -> Iterator[int]:
        with semaphore:
            yield semaphore.permit

    first, second = request(), request()
    assert [pool.run(0, lambda: next(first)), pool.run(0, lambda: next(second))] == [0, 1]
    pool.run(1, lambda: next(first, None))
    assert [is_free(f"{semaphore.path}.{number}.lock") for number in range(2)] == [True, False]
    pool.run(1, lambda: next(second, None))
    assert is_free(f"{semaphore.path}.1.lock")


def test_a_thread_of_a_pool_may_wait_for_what_it_holds_for_another_request(tmp_path: Path, pool: Pool) -> None:
    """Without a limit, and by another object: it is no deadlock, as another thread ends the request."""
    path = tmp_path / "x.lock"
    acquired = pool.run(0, FileLock(path).acquire)
    waiting = pool.start(0, FileLock(path).acquire)
    pool.run(1, acquired.release)
    waiting.result(LIMIT).release()


async def test_a_loop_does_not_wait_for_its_own_task(tmp_path: Path) -> None:
    """A plain ``with`` in two tasks: the second would stop the loop, and the first with it."""
    lock, inside, end = FileLock(tmp_path / "x.lock"), asyncio.Event(), asyncio.Event()

    async def first() -> None:
        with lock:
            inside.set()
            await end.wait()

    task = asyncio.create_task(first())
    await inside.wait()
    with pytest.raises(LockDeadlockError):
        lock.acquire()
    waits = asyncio.create_task(lock.acquire_async())  # this one leaves the loop running
    end.set()
    await task
    (await waits).release()


@pytest.mark.parametrize("kind", ["plain", "acquired", "shared", "semaphore"])
async def test_a_dependency_of_fastapi_holds_it_for_each_request(tmp_path: Path, kind: str) -> None:
    lock: Lock = FileLock(tmp_path / "x.0.lock", timeout=LIMIT, shared=kind == "shared")
    if kind == "semaphore":
        lock = Semaphore(tmp_path / "x", 1, timeout=LIMIT)
    inside: list[int] = []
    most = [0]

    def alone() -> Iterator[None]:
        with lock.acquire() if kind == "acquired" else lock:
            inside.append(1)
            most[0] = max(most[0], len(inside))
            yield
            inside.pop()

    app = FastAPI()

    @app.get("/slow")
    def slow(_: None = Depends(alone)) -> str:
        return "ok"

    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://t") as client:
        for _ in range(6):
            answers = await asyncio.gather(*(client.get("/slow") for _ in range(4)))
            assert collections.Counter(answer.status_code for answer in answers) == {200: 4}
    assert free(lock)
    if kind != "shared":
        assert most == [1]


# Tasks.


async def test_it_is_the_tasks_that_called_whichever_waits(lock: Lock) -> None:
    acquired = await asyncio.wait_for(lock.acquire_async(), LIMIT)
    gc.collect()
    assert lock.held
    acquired.release()
    await asyncio.wait_for(lock.acquire_async(), LIMIT)  # what it returns is dropped, and the caller is inside
    gc.collect()
    assert not free(lock)
    lock.release()
    assert free(lock)


async def test_gather_acquires_several(tmp_path: Path) -> None:
    locks = [FileLock(tmp_path / f"{number}.lock") for number in range(3)]
    await asyncio.gather(*(lock.acquire_async() for lock in locks))
    for lock in locks:
        assert lock.held
        lock.release()
        assert free(lock)


async def test_a_task_group_acquires_several(tmp_path: Path) -> None:
    locks = [FileLock(tmp_path / f"{number}.lock") for number in range(3)]
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(lock.acquire_async()) for lock in locks]
    for task, lock in zip(tasks, locks, strict=True):
        assert lock.held
        await asyncio.create_task(leave(task.result()))
        assert free(lock)


async def leave(acquired: Any) -> None:
    async with acquired:
        pass


async def test_tasks_that_acquire_for_one_are_inside_of_its_hold(tmp_path: Path) -> None:
    """So `wait_for` is re-entrant up to Python 3.11, where it waits in a task of its own, as it is in later ones."""
    lock = FileLock(tmp_path / "x.lock")
    async with await asyncio.wait_for(lock.acquire_async(), LIMIT):
        inner = [
            await asyncio.wait_for(lock.acquire_async(), LIMIT),
            *await asyncio.gather(lock.acquire_async(), lock.acquire_async()),
        ]
        for one in inner:
            one.release()
        assert not free(lock)
        with pytest.raises(LockDeadlockError):  # it would wait for its own caller
            await asyncio.gather(FileLock(lock.path).acquire_async())
    assert free(lock)


async def test_a_plain_with_does_not_wait_for_a_task_of_its_loop(tmp_path: Path) -> None:
    lock = FileLock(tmp_path / "x.lock")
    inside, end = asyncio.Event(), asyncio.Event()

    async def hold() -> None:
        async with lock:
            inside.set()
            await end.wait()

    task = asyncio.create_task(hold())
    await inside.wait()
    for other in (lock, FileLock(lock.path)):
        with pytest.raises(LockDeadlockError), other:
            pass
    end.set()
    await task
    assert free(lock)


async def test_a_task_that_is_made_inside_a_plain_with_waits_for_its_end(tmp_path: Path) -> None:
    lock = FileLock(tmp_path / "x.lock")

    async def wait() -> Any:
        return await lock.acquire_async()

    with lock:
        waiting = asyncio.create_task(wait())
        await asyncio.sleep(0)
        with pytest.raises(LockDeadlockError):  # this one is of the task that is inside
            await FileLock(lock.path).acquire_async()
    (await asyncio.wait_for(waiting, LIMIT)).release()
    assert free(lock)


async def test_a_wait_that_ended_in_a_time_out_leaves_nothing(lock: Lock) -> None:
    if isinstance(lock, FileLock) and lock.shared:
        lock = FileLock(lock.path)
    acquired = in_thread(lock.acquire)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(lock.acquire_async(), 0.01)
    acquired.release()
    wait_until(lambda: free(lock), "the waiter to end")


def test_a_lock_for_another_threads_loop_is_released_by_what_came_back(lock: Lock) -> None:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        acquired = asyncio.run_coroutine_threadsafe(lock.acquire_async(), loop).result(LIMIT)
        gc.collect()
        assert not free(lock)  # though the task that acquired has ended
        acquired.release()
        assert free(lock)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(LIMIT)
        loop.close()


# What it costs.


def test_a_try_that_fails_does_not_look_at_the_locks_that_are_not_held(tmp_path: Path) -> None:
    lock = FileLock(tmp_path / "x.lock")

    def calls() -> int:
        counted, other = [0], FileLock(lock.path, timeout=0)

        def count(frame: Any, event: str, arg: Any) -> None:
            counted[0] += event in ("call", "c_call")

        gc.disable()
        sys.setprofile(count)
        try:
            other.acquire()
        except LockTimeout:
            pass
        finally:
            sys.setprofile(None)
            gc.enable()
        return counted[0]

    with lock:
        calls()  # the first looks up what later ones know
        few = calls()
        idle = [FileLock(tmp_path / f"{number}.lock") for number in range(100)]
        assert calls() == few
        del idle


MAIN_ENDS = """
import sys, threading
from sharedvol import FileLock, LockTimeout
kept = FileLock(sys.argv[1])
kept.acquire()
def work():
    threading.main_thread().join()
    try: FileLock(sys.argv[1], timeout=0).acquire()
    except LockTimeout: print("held")
threading.Thread(target=work).start()
"""


def test_what_the_main_thread_holds_is_held_while_other_threads_run(tmp_path: Path) -> None:
    assert run_python(MAIN_ENDS, str(tmp_path / "x.lock")) == "held"
