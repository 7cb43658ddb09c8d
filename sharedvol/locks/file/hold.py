"""One descriptor of a lock file: how to lock it, wait for it and release it."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import time
from collections.abc import Callable, Iterator
from typing import Final

from sharedvol import forks, native
from sharedvol.errors import LockLostError, LockTimeout, describe
from sharedvol.locks.backend import Handle, LockBackend
from sharedvol.locks.file import waiter
from sharedvol.locks.file.fencing import FencingFiles
from sharedvol.locks.file.fork import close_tracked, open_tracked, untrack
from sharedvol.locks.file.owners import free_orphans, refuse_deadlock
from sharedvol.locks.grant import Owner
from sharedvol.network import NetworkPolicy

_POLL_SECONDS: Final = 0.01


class Hold:
    """One descriptor of a lock file.

    ``handle`` is None while a waiter thread, ``wait``, has the descriptor, and when it was closed. ``end`` is when
    the time to wait is over, by the monotonic clock, once there is one. ``grants`` counts how often it was locked.
    """

    __slots__ = (
        "__weakref__",
        "backend",
        "beside",
        "end",
        "grants",
        "handle",
        "identity",
        "marked",
        "mode",
        "network",
        "path",
        "shared",
        "wait",
    )

    def __init__(
        self,
        backend: LockBackend,
        path: str,
        mode: int,
        shared: bool,
        beside: FencingFiles | None = None,
        network: NetworkPolicy = NetworkPolicy(),  # noqa: B008 # frozen
    ) -> None:
        self.backend, self.path, self.mode, self.shared, self.beside = backend, path, mode, shared, beside
        self.network = network
        self.handle: Handle | None = None
        self.identity: object = None
        self.wait: waiter.Waiter | None = None
        self._open()
        self.grants = 0
        self.end: float | None = None
        forks.track(self)

    def __del__(self) -> None:
        # An interrupt can come between two lines of which the first takes the hold and the second keeps it.
        with contextlib.suppress(Exception):  # the interpreter may be ending
            if self.handle is not None or self.wait is not None:
                self.drop()

    def renew(self) -> None:
        """Forget the descriptor in a forked child, which must not unlock what its parent holds or waits for."""
        self.handle = self.wait = None

    def acquire(self, limit: float | None) -> None:
        """Lock the file that the path names, waiting at most ``limit`` seconds.

        Raises:
            LockTimeout, LockDeadlockError, LockFileError: as `FileLock.acquire`; `put_back` is then to be called.
        """
        while True:
            self._ensure()
            if not self._try():
                self._wait(limit)
            if self.enter():
                return
            self._reopen()

    async def acquire_async(self, limit: float | None, owner: Owner) -> None:
        """As `acquire`, for the task ``owner`` and without blocking the event loop."""
        while True:
            self._ensure()
            if not self._try():
                await self._wait_async(limit, owner)
            if self.enter():
                return
            self._reopen()

    def _try(self) -> bool:
        """Take the lock if it is free, or only held by a thread or task of this process that has just ended."""
        return self.backend.try_both(self.handle, self.path, self.shared) or (
            free_orphans(self.identity) and self.backend.try_both(self.handle, self.path, self.shared)
        )

    def _ensure(self) -> None:
        """Open the lock file again if other code closed its descriptor, as daemons do with all open descriptors.

        The number may be another file's by now, and a lock on that would exclude no process.
        """
        if not self.backend.is_of(self.handle, self.identity, self.marked):
            self._reopen()

    def enter(self) -> bool:
        """Start the hold of a locked descriptor. Return False if the path names another file by now.

        Raises:
            LockFileError: no fencing token can be drawn.
        """
        if not self.backend.is_current(self.path, self.identity):
            return False
        if self.beside is not None:
            self.beside.enter()
        self.grants += 1
        return True

    def release(self) -> LockLostError | None:
        """Unlock. Return the error to raise if the lock was lost."""
        lost = None
        if self.beside is not None:
            if not (isinstance(self.handle, int) and self.beside.is_surely_ours(self.handle, self.identity)):
                reason = self.why_lost()
                lost = self.lost(reason) if reason else None
            self.beside.leave()
            if lost and not self.backend.is_of(self.handle, self.identity, self.marked):
                self.close()
                return lost
        elif not self.backend.is_of(self.handle, self.identity, self.marked):
            # The number may be another file's: to unlock it could free a lock of other code.
            lost = self.lost(_reason(OSError(errno.EBADF, "")))
            self.close()
            return lost
        try:
            self.backend.unlock(self.handle)
        except OSError as error:
            self.close()
            return lost or self.lost(_reason(error))
        return lost

    def put_back(self) -> None:
        """Release what a failed acquire got of the lock."""
        forks.notice()
        self.end_wait()
        if self.beside is not None:
            self.beside.leave()
        if self.handle is None:
            return  # a waiter thread has the descriptor, or there is none
        try:
            self.backend.unlock(self.handle)
        except OSError:
            self.close()

    def drop(self) -> None:
        """Close everything after a `put_back` that was interrupted."""
        forks.notice()
        self.end_wait()
        self.close()

    def close(self) -> None:
        """Close the descriptors, which unlocks them."""
        if self.beside is not None:
            self.beside.close()
        handle, self.handle = self.handle, None
        if handle is None:
            return
        if self.identity is None or self.backend.is_of(handle, self.identity, self.marked):
            close_tracked(self.backend, handle)
        else:
            untrack(handle)  # other code closed it, and its number may be another file's

    def why_lost(self) -> str | None:
        """Return how the lock was lost, in words. None while it is held. Any thread may call this."""
        reason = self.backend.why_lost(self.handle, self.path, self.identity)
        if reason is None and self.beside is not None:
            reason = self.beside.why_lost()
        return reason

    def lost(self, reason: str) -> LockLostError:
        """Return the error for a lock that was lost."""
        return LockLostError(
            f"lock {self.path!r} was lost: {reason}; another may have had it since, so check what was done under it"
        )

    def _reopen(self) -> None:
        """Open the lock file that the path names now. The open one excludes no process."""
        self.close()
        self._open()

    def _open(self) -> None:
        self.handle = open_tracked(self.backend, self.path, self.mode)
        self.identity = self.backend.identify(self.handle, self.path)
        self.marked = self.backend.mark(self.handle)
        try:
            self.network.check(self.handle, "lock", self.path)
        except BaseException:
            self.close()
            raise

    # Waiting.

    def _wait(self, limit: float | None) -> None:
        native.refuse_eventlet()
        if limit == 0:
            raise LockTimeout(self.path)
        if limit is None:
            refuse_deadlock(self.path, self.identity)
            if not native.has_greenlets():
                self.backend.wait_first(self.handle, self.path, self.shared)
                self.backend.wait_second(self.handle, self.path, self.shared)
                return
        left = None if limit is None else self._left(limit)
        ended = native.bell()
        try:
            if not self.lend(ended.ring):
                for pause in self._polls(limit):
                    time.sleep(pause)
                return
            ended.wait(left)
            self._take_back(limit)
        finally:
            ended.close()

    async def _wait_async(self, limit: float | None, owner: Owner) -> None:
        if limit is None:
            refuse_deadlock(self.path, self.identity, owner)
        elif limit == 0:
            raise LockTimeout(self.path)
        ended = Notice()
        left = None if limit is None else self._left(limit)
        if not self.lend(ended.tell):
            for pause in self._polls(limit):
                await asyncio.sleep(pause)
            return
        await ended.wait(left)
        self._take_back(limit)

    def _left(self, limit: float) -> float:
        """Return the seconds left of ``limit``, counted from the first wait of this acquire."""
        now = time.monotonic()
        if self.end is None:
            self.end = now + limit
        return max(0.0, self.end - now)

    def lend(self, notify: Callable[[], None]) -> bool:
        """Let a thread wait with the descriptor. Return False if none can be started, as at a limit of processes.

        The hold knows the waiter before its thread runs. So `put_back` finds the waiter after any exception, and no
        lock is left that no one releases.
        """

        def keep(wait: waiter.Waiter | None) -> None:
            if wait is not None and wait.handle == handle:  # not a parked one, which has another descriptor
                wait.marked = self.marked
            self.wait = wait

        handle, self.handle = self.handle, None
        try:
            waiter.wait_for(self.backend, handle, self.identity, self.path, self.shared, notify, keep)
        except RuntimeError:
            self.handle = handle
            return False
        return True

    def end_wait(self) -> waiter.Waiter | None:
        """Take the descriptor from the waiter if its wait has ended. Otherwise walk away from it."""
        wait = self.wait
        if wait is not None and not waiter.walk_away(wait):
            self.handle, self.marked = wait.handle, wait.marked
        self.wait = None
        return wait

    def _polls(self, limit: float | None) -> Iterator[float]:
        """Yield the pauses between tries where no thread can wait. Ends when the lock is taken."""
        while not self.backend.try_both(self.handle, self.path, self.shared):
            left = _POLL_SECONDS if limit is None else self._left(limit)
            if not left:
                raise LockTimeout(self.path, limit or 0.0)
            yield min(left, _POLL_SECONDS)

    def _take_back(self, limit: float | None) -> None:
        """Take the descriptor back after a wait or a timeout."""
        wait = self.end_wait()
        if self.handle is None:
            raise LockTimeout(self.path, limit or 0.0)
        if wait is not None and wait.error is not None:
            raise wait.error


class Notice:
    """Wakes a coroutine of the running loop from another thread."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._told = self._loop.create_future()

    def tell(self) -> None:
        """Wake the coroutine, from any thread."""
        with contextlib.suppress(RuntimeError):  # the loop was closed, so nothing waits
            self._loop.call_soon_threadsafe(self._set)

    async def wait(self, seconds: float | None) -> None:
        """Wait until `tell`, at most ``seconds``. Never swallows a cancellation, as ``asyncio.wait_for`` may."""
        await asyncio.wait([self._told], timeout=seconds)
        if self._told.done():
            self._told = self._loop.create_future()

    def _set(self) -> None:
        if not self._told.done():
            self._told.set_result(None)


def _reason(error: OSError) -> str:
    if error.errno == errno.EBADF:
        return "its descriptor was closed by other code of this process"
    return f"it cannot be unlocked, {describe(error)}"
