"""Threads of the operating system and signals between them, which also work when gevent has replaced `threading`.

A wait in the kernel stops the thread that it runs in. When gevent has patched `threading`, all "threads" of the process
are greenlets of one thread, and such a wait would stop all of them, including the holder of the lock. So waits run in
threads that gevent did not make. The greenlet that needs the result waits for a `Bell`, and other greenlets run.

Each wait checks whether gevent has patched anything, because an application server patches after it has imported the
application's settings.
"""

from __future__ import annotations

import _thread
import contextlib
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Protocol

from sharedvol.errors import LockError

_YIELD_SECONDS = 0.001


def has_greenlets() -> bool:
    """Return whether gevent has replaced the threads of this process with greenlets."""
    monkey: Any = sys.modules.get("gevent.monkey")
    return monkey is not None and bool(monkey.is_module_patched("threading"))


def waiting_greenlets() -> set[int]:
    """Return the thread numbers of the greenlets that continue when the calling one ends, where gevent has made them.

    The chain ends at gevent's own loop: the greenlets that it runs do not wait for each other.
    """
    waiting: set[int] = set()
    if has_greenlets():
        from gevent import getcurrent  # type: ignore[import-untyped, unused-ignore]
        from gevent.hub import Hub  # type: ignore[import-untyped, unused-ignore]

        one = getcurrent().parent
        while one is not None and not isinstance(one, Hub):
            waiting.add(id(one))
            one = one.parent
    return waiting


def refuse_eventlet() -> None:
    """Refuse a process in which eventlet has replaced the threads, because a wait there would stop all of them.

    Raises:
        LockError: eventlet has replaced them.
    """
    patcher: Any = sys.modules.get("eventlet.patcher")
    if patcher is not None and patcher.is_monkey_patched("thread"):
        raise LockError(
            "eventlet has replaced the threads of this process, and a wait for a lock would stop all of them: "
            "use gevent, threads or asyncio"
        )


def _real(module: Any, name: str) -> Any:
    """Return ``module.name`` as it was before gevent replaced it."""
    monkey: Any = sys.modules.get("gevent.monkey")
    return getattr(module, name) if monkey is None else monkey.get_original(module.__name__, name)


def mutex() -> Any:
    """Return a re-entrant lock of the operating system's threads. Do not wait for anything else while you hold it."""
    # The lock in C has no parts in Python that gevent could patch. All greenlets of a thread are the same owner to it.
    return _thread.RLock()


def start_thread(function: Callable[[], object], name: str) -> None:
    """Run ``function`` in a daemon thread of the operating system.

    Raises:
        RuntimeError: no thread can be started.
    """
    if has_greenlets():
        _real(_thread, "start_new_thread")(function, ())
    else:
        threading.Thread(target=function, name=name, daemon=True).start()


class Bell(Protocol):
    """Wakes a thread or greenlet that waits, from any thread. The one that waits makes it with `bell`."""

    def ring(self) -> None:
        """Wake the waiter, or let its next wait end at once."""

    def wait(self, seconds: float | None) -> bool:
        """Wait until the bell rings, and reset it. Return False if the time is over first."""

    def close(self) -> None:
        """Free the bell's resources. Do not wait for it any more."""


def bell() -> Bell:
    """Return a bell. While a greenlet waits for it, other greenlets run."""
    return _GreenletBell() if has_greenlets() and not _is_hub() else _ThreadBell()


class _ThreadBell:
    def __init__(self) -> None:
        self._lock = _real(_thread, "allocate_lock")()
        self._lock.acquire()

    def ring(self) -> None:
        with contextlib.suppress(RuntimeError):  # it has rung already
            self._lock.release()

    def wait(self, seconds: float | None) -> bool:
        return bool(self._lock.acquire(timeout=-1 if seconds is None else min(seconds, threading.TIMEOUT_MAX)))

    def close(self) -> None:
        pass


class _GreenletBell:
    """A bell that is an asynchronous watcher of gevent's loop, the only part of a loop that other threads may use."""

    def __init__(self) -> None:
        from gevent import get_hub  # type: ignore[import-untyped, unused-ignore]
        from gevent.event import Event  # type: ignore[import-untyped, unused-ignore]

        self._mutex = mutex()
        self._rung = Event()
        self._watcher: Any = get_hub().loop.async_()
        self._watcher.start(self._rung.set)

    def ring(self) -> None:
        with self._mutex:
            if self._watcher is not None:
                self._watcher.send()

    def wait(self, seconds: float | None) -> bool:
        rung = bool(self._rung.wait(seconds))
        self._rung.clear()
        return rung

    def close(self) -> None:
        with self._mutex:
            watcher, self._watcher = self._watcher, None
        if watcher is not None:
            watcher.stop()
            watcher.close()


def _is_hub() -> bool:
    """Return whether the caller is gevent's own loop, as in a signal handler. A loop cannot wait for its own events."""
    from gevent import get_hub, getcurrent

    return bool(getcurrent() is get_hub())


class Turnstile:
    """A lock that may be made before gevent patches and used afterwards. Waiting for it lets other greenlets run.

    Waiting for a lock of `threading` that was made before would also stop the greenlet that holds it.
    """

    def __init__(self) -> None:
        self._lock = _real(_thread, "allocate_lock")()

    def locked(self) -> bool:
        """Return whether the lock is held."""
        return bool(self._lock.locked())

    def __enter__(self) -> None:
        while not self._lock.acquire(blocking=not has_greenlets()):
            time.sleep(_YIELD_SECONDS)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.release()
