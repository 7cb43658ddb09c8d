"""What the locks of all servers have in common, without a server."""

from __future__ import annotations

import contextvars
import gc
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support.processes import LIMIT, run_python

from sharedvol import LockDeadlockError, LockTimeout, NotLockedError
from sharedvol.locks.grant import Grant
from sharedvol.locks.server_lock import ServerLock


class Granted(ServerLock):
    """A lock that its server grants at once."""

    def __init__(self) -> None:
        super().__init__("x", None, False, "")

    def _reset(self) -> None:
        pass

    def _begin(self, begun: float, limit: float | None) -> None:
        pass

    def _end(self) -> None:
        self._freed()

    def _let_go(self) -> None:
        pass


def test_the_lock_of_a_thread_that_ended_is_no_other_threads() -> None:
    lock, kept, refused = Granted(), [], []

    def use() -> None:
        try:
            kept.append(lock.acquire(timeout=0))  # kept, so that it is not freed
        except LockTimeout:
            refused.append(threading.get_ident())

    for _ in range(10):  # the system gives the number of a thread that ended to the next one
        thread = threading.Thread(target=use)
        thread.start()
        thread.join(LIMIT)
    assert len(refused) == 9


def in_thread(work: Callable[[], Any]) -> Any:
    """What ``work`` returns in a thread that ends after it."""
    outcome: list[Any] = []
    thread = threading.Thread(target=lambda: outcome.append(work()))
    thread.start()
    thread.join(LIMIT)
    return outcome[0]


def test_what_acquire_returned_releases_in_any_thread_once() -> None:
    lock = Granted()
    first, second = lock.acquire(), lock.acquire()
    in_thread(second.release)
    assert lock.held
    in_thread(first.release)
    assert not lock.held
    with pytest.raises(NotLockedError):
        first.release()
    lock.acquire().release()


def test_a_block_ends_in_any_thread_and_a_release_does_not() -> None:
    lock = Granted()

    def block() -> Iterator[None]:
        with lock:
            yield

    def refused() -> bool:
        with pytest.raises(NotLockedError, match="acquire"):
            lock.release()
        return True

    running = block()
    next(running)
    assert in_thread(refused)
    in_thread(lambda: next(running, None))
    assert not lock.held


def test_it_is_freed_when_its_thread_ended_and_what_acquire_returned_was_collected() -> None:
    lock = Granted()
    kept = [in_thread(lock.acquire)]
    gc.collect()
    assert lock.held
    kept.clear()
    gc.collect()
    with lock.acquire(timeout=LIMIT):
        pass
    in_thread(lambda: lock.acquire() and None)
    with lock.acquire(timeout=LIMIT):
        pass


def test_one_request_of_a_thread_does_not_enter_with_the_hold_of_another() -> None:
    lock = Granted()
    acquired = contextvars.copy_context().run(lock.acquire)
    with pytest.raises(LockTimeout):
        lock.acquire(timeout=0)
    acquired.release()
    with lock, lock.acquire(timeout=0):
        pass
    assert not lock.held


async def test_a_loop_does_not_wait_for_its_own_task() -> None:
    lock = Granted()
    acquired = contextvars.copy_context().run(lock.acquire)
    with pytest.raises(LockDeadlockError, match="event loop"):
        lock.acquire()
    acquired.release()


def test_a_thread_whose_object_nothing_keeps_leaves_it_free() -> None:
    lock, done = Granted(), threading.Event()

    def use() -> None:
        lock.acquire()
        done.set()

    threading.Thread(target=use).start()
    assert done.wait(LIMIT)
    with lock.acquire(timeout=LIMIT):
        pass


KEPT = """
from sharedvol.locks.server_lock import ServerLock
class Granted(ServerLock):
    def _nothing(self, *args): pass
    _reset = _begin = _end = _let_go = _nothing
lock = Granted("x", None, False, "")
acquired = lock.acquire()
print("end")
"""


def test_a_process_ends_that_keeps_what_acquire_returned() -> None:
    assert run_python(KEPT) == "end"


def test_it_is_freed_while_the_module_threading_is_in_use() -> None:
    """What acquire returned may be collected anywhere, also in the midst of the start of a thread."""
    lock = Granted()
    kept = [in_thread(lock.acquire)]
    with threading._active_limbo_lock:  # type: ignore[attr-defined]
        kept.clear()
        with lock.acquire(timeout=LIMIT):
            pass


def test_the_end_of_a_block_does_not_release_the_hold_of_another_thread() -> None:
    lock, kept = Granted(), []
    with pytest.raises(NotLockedError), lock:
        lock.release()
        kept.append(in_thread(lock.acquire))
    assert lock.held
    kept[0].release()
    assert not lock.held


def test_two_releases_at_one_moment_free_it(monkeypatch: pytest.MonkeyPatch) -> None:
    lock = Granted()
    first, second = lock.acquire(), lock.acquire()
    thread, undo = threading.Thread(target=first.release), Grant.undo

    def between(*args: Any) -> Any:
        monkeypatch.setattr(Grant, "undo", undo)
        thread.start()
        thread.join(0.05)  # it may have to wait for this call
        return undo(*args)

    monkeypatch.setattr(Grant, "undo", between)
    second.release()
    thread.join(LIMIT)
    assert not lock.held


def test_a_lock_that_is_being_released_is_not_entered_again() -> None:
    class Slow(Granted):
        def _end(self) -> None:
            with pytest.raises(LockTimeout):
                self.acquire(timeout=0)
            super()._end()

    lock = Slow()
    lock.acquire().release()
    assert not lock.held
