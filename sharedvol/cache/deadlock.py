"""Refuse a wait for an entry whose computation waits for the caller, within this process.

The computation of A may need B, whose computation may need A. Each computation records what it waits for, and a wait
that leads back to the caller's own computation is refused. The chain is a context variable, so that it reaches the
asyncio tasks and the `asyncio.to_thread` calls of a computation. Other threads that a computation starts, and other
processes, are not covered: there only a timeout ends such a wait.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Final

from sharedvol import forks
from sharedvol.errors import LockDeadlockError


class _Computation:
    __slots__ = ("active", "pid", "thread", "waits_for")

    def __init__(self) -> None:
        self.pid, self.thread, self.active = os.getpid(), threading.get_ident(), True
        self.waits_for: list[str] = []


_chain: Final[ContextVar[tuple[_Computation, ...]]] = ContextVar("sharedvol_cache_chain", default=())
_running: dict[str, _Computation] = {}
_mutex = threading.RLock()  # re-entrant: a signal handler may use a cache while the main thread is in here


@contextlib.contextmanager
def computing(path: str) -> Iterator[None]:
    """Record for the block that the entry of the lock file ``path`` is computed here."""
    forks.notice()
    computation = _Computation()
    with _mutex:
        _running[path] = computation
    token = _chain.set((*_chain.get(), computation))
    try:
        yield
    finally:
        computation.active = False
        with _mutex:
            if _running.get(path) is computation:
                del _running[path]
        with contextlib.suppress(ValueError):  # ended in another context: a generator that was dropped
            _chain.reset(token)


@contextlib.contextmanager
def waiting(path: str) -> Iterator[None]:
    """Record for the block that the caller waits for the entry of the lock file ``path``.

    Raises:
        LockDeadlockError: the caller would wait for itself.
    """
    forks.notice()
    # A forked child has its parent's chain, and a task may outlive the computation that started it.
    mine = [one for one in _chain.get() if one.active and one.pid == os.getpid()]
    if not mine:
        yield
        return
    with _mutex:
        if _leads_to(path, mine):
            raise LockDeadlockError(
                f"the cache entry of {path!r} is being computed, and its computation waits for this or is this one: "
                "it would wait for itself; do not get an entry while computing it"
            )
        for one in mine:
            one.waits_for.append(path)
    try:
        yield
    finally:
        with _mutex:
            for one in mine:
                one.waits_for.remove(path)


def refuse_own_thread(path: str) -> None:
    """Refuse to block this thread until the entry of the lock file ``path`` is computed, if the thread computes it.

    Raises:
        LockDeadlockError: a task of this thread's event loop, or the code that a signal handler interrupted, computes
            it.
    """
    forks.notice()
    with _mutex:
        running = _running.get(path)
    if running is not None and running.thread == threading.get_ident():
        raise LockDeadlockError(
            f"the cache entry of {path!r} is being computed in this thread, which would wait for itself; in an event "
            "loop await get_async instead of calling get"
        )


def _leads_to(path: str, mine: list[_Computation]) -> bool:
    todo, seen = [path], set()
    while todo:
        path = todo.pop()
        running = _running.get(path)
        if running is None or path in seen:
            continue
        if running in mine:
            return True
        seen.add(path)
        todo += running.waits_for
    return False


@forks.in_child
def _renew() -> None:
    global _mutex
    _mutex = threading.RLock()
    _running.clear()
