"""Wait in the kernel until the holder of a lock file releases it or ends, without keeping a lock or creating a file.

A waiter requests a *shared* lock, so that all waiters wake at once, and releases it at once. The fcntl lock is enough,
because `FileLock` takes it first and releases it last. Without a timeout the caller itself blocks. With a timeout, and
in an asyncio task, one thread blocks for all waiters for the same file in this process. It stays for the others when
one of them gives up, and ends with the wait.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

from sharedvol import forks, native
from sharedvol.errors import LockError
from sharedvol.locks.file import linux
from sharedvol.locks.file.fork import close_tracked, open_tracked

_this: Any = sys.modules[__name__]  # has open_lock_file and close, which `open_tracked` calls

Notify = Callable[[], None]


def open_lock_file(path: str, mode: int) -> int:
    """Open an existing lock file."""
    return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)


def close(fd: int) -> None:
    """Close the descriptor."""
    linux.close(fd)


def wait(path: str, timeout: float | None) -> bool:
    """Wait until no process holds the lock file exclusively, or it is removed. Return False after the timeout.

    It also returns early if the kernel cannot be queried. So the caller has to check.

    Args:
        path: the lock file.
        timeout: seconds to wait; None to wait indefinitely.
    """
    native.refuse_eventlet()
    if timeout is None and not native.has_greenlets():
        with contextlib.suppress(OSError):
            fd: Any = open_tracked(_this, path, 0)
            try:
                _block(fd, path)
            finally:
                close_tracked(_this, fd)
        return True
    ended = native.bell()
    try:
        with _watched(path, ended.ring):
            return ended.wait(timeout)
    finally:
        ended.close()


async def wait_async(path: str, timeout: float | None) -> bool:
    """Wait as `wait` does, without blocking the event loop."""
    loop, ended = asyncio.get_running_loop(), asyncio.Event()

    def notify() -> None:
        with contextlib.suppress(RuntimeError):  # the loop was closed, and its tasks with it
            loop.call_soon_threadsafe(ended.set)

    with _watched(path, notify):
        try:
            await asyncio.wait_for(ended.wait(), timeout)
        except TimeoutError:
            return False
    return True


class _Watcher:
    """A thread that waits for one lock file, for all waiters in this process."""

    def __init__(self, fd: Any, identity: object, path: str) -> None:
        self.fd, self.identity, self.path = fd, identity, path
        self.notify: list[Notify] = []
        self.started = False

    def start(self) -> None:
        """Start the thread, as a daemon: a wait must not keep the process from ending."""
        native.start_thread(self.run, f"sharedvol-cache {self.path}")
        self.started = True

    def run(self) -> None:
        try:
            _block(self.fd, self.path)
        finally:
            with _mutex:
                # Before the descriptor is closed, because the inode's number can be reused then.
                if _watchers.get(self.identity) is self:
                    del _watchers[self.identity]
                waiting = list(self.notify)  # a copy, because each waiter then removes itself from the list
            close_tracked(_this, self.fd)
            for notify in waiting:
                notify()


_watchers: dict[object, _Watcher] = {}
_mutex = native.mutex()  # re-entrant: a signal handler may wait while the main thread is in here


@contextlib.contextmanager
def _watched(path: str, notify: Notify) -> Iterator[None]:
    """Call ``notify`` in another thread when the wait ends."""
    try:
        watcher = _watch(path, notify)
    except (OSError, RuntimeError):  # the file is removed, or no thread can be started
        notify()
        yield
        return
    try:
        yield
    finally:
        with _mutex, contextlib.suppress(ValueError):
            watcher.notify.remove(notify)


def _watch(path: str, notify: Notify) -> _Watcher:
    fd: Any = open_tracked(_this, path, 0)  # before the mutex is used, because it detects a fork
    identity = linux.identify(fd, path)
    with _mutex:
        watcher = _watchers.get(identity)
        # A watcher that was interrupted while it started may wake no waiter.
        if watcher is not None and watcher.started:
            close_tracked(_this, fd)
            watcher.notify.append(notify)
            return watcher
        watcher = _watchers[identity] = _Watcher(fd, identity, path)
        watcher.notify.append(notify)
        try:
            watcher.start()
        except RuntimeError:
            del _watchers[identity]
            close_tracked(_this, fd)
            raise
    return watcher


def _block(fd: Any, path: str) -> None:
    with contextlib.suppress(LockError):
        linux.wait_first(fd, path, True)
        linux.unlock_first(fd)  # closing is not enough: a forked child may have a copy


@forks.in_child
def _renew() -> None:
    global _mutex
    _mutex = native.mutex()
    _watchers.clear()  # their threads stayed in the parent; `fork` closes the descriptors
