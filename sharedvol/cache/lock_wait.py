"""Wait in the kernel until a lock file's holder has ended, or has let go: nothing is taken, and no file made.

Waiting is for a *shared* lock, so that all who wait are woken at once, and each drops it again at once. The fcntl lock
is enough, which `FileLock` takes first and drops last. Without a time limit the caller itself blocks. With one, and in
an asyncio task, a thread does: one for all in this process who wait for the same file, and it is still there for the
next when one of them gives up. It ends with the wait.
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
from sharedvol.locks.file import linux as kernel
from sharedvol.locks.file.fork import close_handle, open_handle

_this: Any = sys.modules[__name__]  # with open_lock_file and close, as `open_handle` wants them

Notify = Callable[[], None]


def open_lock_file(path: str, mode: int) -> int:
    """A descriptor of the lock file that is there."""
    return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)


def close(fd: int) -> None:
    """Close it."""
    kernel.close(fd)


def wait(path: str, timeout: float | None) -> bool:
    """Wait until nobody holds the lock file ``path`` exclusively, or it is gone. False if that took too long.

    It may also end early, where the kernel cannot be asked: the caller has to look.

    Args:
        path: the lock file.
        timeout: seconds, None for ever.
    """
    native.refuse_eventlet()
    if timeout is None and not native.has_greenlets():
        with contextlib.suppress(OSError):
            fd: Any = open_handle(_this, path, 0)
            try:
                _block(fd, path)
            finally:
                close_handle(_this, fd)
        return True
    ended = native.bell()
    try:
        with _watched(path, ended.ring):
            return ended.wait(timeout)
    finally:
        ended.close()


async def wait_async(path: str, timeout: float | None) -> bool:
    """As `wait`, without blocking the event loop."""
    loop, ended = asyncio.get_running_loop(), asyncio.Event()

    def notify() -> None:
        with contextlib.suppress(RuntimeError):  # the loop was closed: nobody waits any more
            loop.call_soon_threadsafe(ended.set)

    with _watched(path, notify):
        try:
            await asyncio.wait_for(ended.wait(), timeout)
        except TimeoutError:
            return False
    return True


class _Watcher:
    """A thread that waits for one lock file, on behalf of all in this process who do."""

    def __init__(self, fd: Any, identity: object, path: str) -> None:
        self.fd, self.identity, self.path = fd, identity, path
        self.notify: list[Notify] = []
        self.started = False

    def start(self) -> None:
        """Begin to wait."""
        # A wait that no one needs any more must not keep the process from ending.
        native.start_thread(self.run, f"sharedvol-cache {self.path}")
        self.started = True

    def run(self) -> None:
        try:
            _block(self.fd, self.path)
        finally:
            with _mutex:
                # Before the descriptor is closed: the inode's number is then used again.
                if _watchers.get(self.identity) is self:
                    del _watchers[self.identity]
                waiting = list(self.notify)  # who is told takes himself off the list, at once
            close_handle(_this, self.fd)
            for notify in waiting:
                notify()


_watchers: dict[object, _Watcher] = {}
_mutex = native.mutex()  # re-entrant: a signal handler may wait while the main thread is in here


@contextlib.contextmanager
def _watched(path: str, notify: Notify) -> Iterator[None]:
    """Have ``notify`` called, in another thread, when the wait ends."""
    try:
        watcher = _watch(path, notify)
    except (OSError, RuntimeError):  # it is gone; or no thread can be started, and the caller goes on as if it were
        notify()
        yield
        return
    try:
        yield
    finally:
        with _mutex, contextlib.suppress(ValueError):
            watcher.notify.remove(notify)


def _watch(path: str, notify: Notify) -> _Watcher:
    fd: Any = open_handle(_this, path, 0)  # which notices a fork before the mutex is used
    identity = kernel.identify(fd, path)
    with _mutex:
        watcher = _watchers.get(identity)
        # One that was interrupted when it started may wake no one.
        if watcher is not None and watcher.started:
            close_handle(_this, fd)
            watcher.notify.append(notify)
            return watcher
        watcher = _watchers[identity] = _Watcher(fd, identity, path)
        watcher.notify.append(notify)
        try:
            watcher.start()
        except RuntimeError:
            del _watchers[identity]
            close_handle(_this, fd)
            raise
    return watcher


def _block(fd: Any, path: str) -> None:
    with contextlib.suppress(LockError):
        kernel.wait_first(fd, path, True)
        kernel.unlock_first(fd)  # and not by the close alone: a forked child may have a copy


@forks.in_child
def _renew() -> None:
    global _mutex
    _mutex = native.mutex()
    _watchers.clear()  # their threads stayed in the parent; `handles` closes the descriptors
