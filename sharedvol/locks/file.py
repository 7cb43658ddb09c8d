"""The file lock: exclusive or shared between replicas, in every language.

A `FileLock` keeps one descriptor open between uses and lets the kernel decide who has the lock, between
threads and tasks of one process too: each that holds or waits does so on a descriptor of its own. What
stays here is who holds how many times, time-outs, and forks.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Final

from sharedvol.errors import LockDeadlockError, LockTimeout, NotLockedError
from sharedvol.locks import kernel, portable, waiter
from sharedvol.locks.handles import close_handle, open_handle

_system: Final[ModuleType] = kernel if kernel.AVAILABLE else portable

Owner = object
"""Who holds: a `threading.Thread`, or an `asyncio.Task`."""


class _Default:
    def __repr__(self) -> str:
        return "the lock's own"


_DEFAULT: Final = _Default()
_POLL_SECONDS: Final = 0.01


class _Hold:
    """One descriptor and, while it is locked, how often its owner has taken it.

    ``handle`` is None while a waiter thread, ``wait``, has the descriptor. ``end`` is when the time to
    wait is over, by the monotonic clock, once there is one.
    """

    __slots__ = ("depth", "end", "handle", "identity", "wait")

    def __init__(self, handle: object, identity: object) -> None:
        self.handle: object | None = handle
        self.identity = identity
        self.depth = 0
        self.wait: waiter.Waiter | None = None
        self.end: float | None = None


class _Held:
    """What `acquire` returns: a ``with`` on it releases, and does not acquire again."""

    __slots__ = ("_lock",)

    def __init__(self, lock: FileLock) -> None:
        self._lock = lock

    def __enter__(self) -> FileLock:
        return self._lock

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    async def __aenter__(self) -> FileLock:
        return self._lock

    async def __aexit__(self, *_: object) -> None:
        await self._lock.__aexit__(None, None, None)


class FileLock:
    """An advisory lock on a file of its own, for all who share the volume.

    Excludes every process that locks the same file with flock(2) or fcntl(2), in any language and
    container of the machine: Python's filelock, portalocker and fasteners, flock(1), R's filelock.
    The kernel frees it the moment its holder dies.

    ::

        lock = FileLock("/app/shared/locks/index.lock")
        with lock:
            ...

    Keep the object: it keeps its descriptor. It is re-entrant for the thread (or asyncio task) that
    holds it, and excludes all others, also those that use the same object; a shared lock is held by
    several at once. In a coroutine use ``async with``: a plain ``with`` belongs to the thread, which all
    its tasks share. A forked child starts without it. The file is never deleted, and must never be
    opened for anything else: on Linux, closing any descriptor of it drops the lock of an R process.

    Args:
        path: the lock file, created where missing; its directory must exist. Never a data file.
        timeout: seconds to wait; None waits for ever, 0 not at all. `acquire` can say otherwise.
        shared: hold it together with other shared holders.
        mode: permission bits of a lock file that is created here. Everyone by default, so that
            replicas with different users can share it: the file holds nothing.

    Raises:
        ValueError: ``timeout`` is negative or not a number.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        timeout: float | None = None,
        shared: bool = False,
        mode: int = 0o666,
    ) -> None:
        _check_timeout(timeout)
        self._path = os.path.abspath(os.fspath(path))  # a later chdir must not change which file is meant
        self._timeout, self._shared, self._mode = timeout, shared, mode
        self._forget()
        _locks[id(self)] = self

    @property
    def path(self) -> Path:
        """The lock file, absolute."""
        return Path(self._path)

    @property
    def shared(self) -> bool:
        """Whether the lock is held together with other shared holders."""
        return self._shared

    @property
    def timeout(self) -> float | None:
        """The seconds to wait unless `acquire` says otherwise."""
        return self._timeout

    @property
    def held(self) -> bool:
        """Whether the calling thread, or the running task, holds the lock."""
        return self._owner_here() is not None

    def acquire(self, timeout: float | _Default | None = _DEFAULT) -> _Held:
        """Take the lock, waiting in the kernel. To be undone by `release`, or a ``with`` on what is returned.

        Args:
            timeout: seconds to wait, None for ever, 0 not at all; else as the lock was made.

        Raises:
            LockTimeout: it was not free in time.
            LockDeadlockError: this thread holds the file through another object and would wait for ever.
            LockFileError: the file cannot be opened, or locked, where it is.
            ValueError: ``timeout`` is negative or not a number.
        """
        self._acquire(timeout)
        return _Held(self)  # not kept: a cycle would keep the descriptor of a dropped lock

    def _acquire(self, timeout: float | _Default | None) -> None:
        owner = threading.current_thread()
        hold = self._holds.get(owner)
        if hold is None:
            limit = self._timeout if timeout is _DEFAULT else self._limit(timeout)
            hold = self._take()
            try:
                while True:
                    if not _system.try_both(hold.handle, self._path, self._shared):
                        self._wait(hold, limit)
                    if _system.is_current(self._path, hold.identity):
                        break
                    self._reopen(hold)
            except BaseException:
                self._put_back(hold)
                raise
            self._holds[owner] = hold
        hold.depth += 1

    async def acquire_async(self, timeout: float | _Default | None = _DEFAULT) -> _Held:
        """As `acquire`, for the running task, and without blocking the event loop.

        A cancelled wait gives up its place. ``async with lock:`` does this and releases.

        Raises:
            LockTimeout, LockDeadlockError, LockFileError, ValueError: as `acquire`.
            RuntimeError: called outside a task.
        """
        owner = asyncio.current_task()
        if owner is None:
            raise RuntimeError("acquire_async must run in an asyncio task")
        hold = self._holds.get(owner)
        if hold is None:
            limit = self._limit(timeout)
            hold = self._take()
            try:
                while True:
                    if not _system.try_both(hold.handle, self._path, self._shared):
                        await self._wait_async(hold, limit)
                    if _system.is_current(self._path, hold.identity):
                        break
                    self._reopen(hold)
            except BaseException:
                self._put_back(hold)
                raise
            self._holds[owner] = hold
        hold.depth += 1
        return _Held(self)  # not kept: a cycle would keep the descriptor of a dropped lock

    def release(self) -> None:
        """Undo one `acquire` of this thread or task; the last one frees the lock.

        In a forked child, which started without the lock, undoing its parent's acquire does nothing.

        Raises:
            NotLockedError: the caller does not hold the lock.
        """
        owner: Owner | None = threading.current_thread()
        if owner not in self._holds:
            owner = self._owner_here()
        self._release(owner)

    def _release(self, owner: Owner | None) -> None:
        if owner is None:
            if self._undo_inherited():
                return
            raise NotLockedError(
                f"lock {self._path!r} is not held by this thread or task: release where it was acquired, and once"
            )
        hold = self._holds[owner]
        hold.depth -= 1
        if hold.depth:
            return
        del self._holds[owner]
        try:
            _system.unlock(hold.handle)
        except OSError:
            # The descriptor was closed by other code, and the lock went with it; or the file server is
            # gone, and closing is all that is left.
            self._close(hold)
        else:
            self._keep(hold)

    def __enter__(self) -> FileLock:
        self._acquire(_DEFAULT)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    async def __aenter__(self) -> FileLock:
        await self.acquire_async()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # The task's own hold before one of its thread: both exist where the lock is shared.
        self._release(self._owner_here(task_first=True))

    def fileno(self) -> int:
        """The descriptor of the lock that the caller holds: to hand to a program that is to hold it too.

        Both locks belong to the open file description: a program that inherits it keeps the lock until
        it, too, has ended. Never read, write or unlock through it.

        Raises:
            NotLockedError: the caller does not hold the lock.
        """
        owner = self._owner_here()
        handle = self._holds[owner].handle if owner is not None else None
        if not isinstance(handle, int):
            raise NotLockedError(f"lock {self._path!r} is not held by this thread or task: it has no descriptor")
        return handle

    def __repr__(self) -> str:
        kind = "shared " if self._shared else ""
        return f"<{kind}FileLock {self._path!r} {'held' if self.held else 'not held'} here>"

    def __reduce__(self) -> tuple[Callable[..., FileLock], tuple[object, ...]]:
        # A lock that is sent to another process is the same file, not the same hold.
        return _rebuild, (self._path, self._timeout, self._shared, self._mode)

    def __del__(self) -> None:
        with contextlib.suppress(Exception):  # __init__ may have failed; the interpreter may be ending
            for hold in (*self._holds.values(), *self._idle):
                self._close(hold)

    # What follows keeps the descriptors.

    def _take(self) -> _Hold:
        try:
            return self._idle.pop()
        except IndexError:
            handle = open_handle(_system, self._path, self._mode)
            return _Hold(handle, _system.identify(handle, self._path))

    def _keep(self, hold: _Hold) -> None:
        """Keep one unlocked descriptor for the next use."""
        hold.end = None
        if self._idle:
            self._close(hold)
        else:
            self._idle.append(hold)

    def _put_back(self, hold: _Hold) -> None:
        """After a failed acquire: whatever it got of the lock goes."""
        hold.depth = 0
        self._end_wait(hold)
        if hold.handle is None:
            return  # a waiter thread has the descriptor, or there is none
        try:
            _system.unlock(hold.handle)
        except OSError:
            self._close(hold)
        else:
            self._keep(hold)

    def _close(self, hold: _Hold) -> None:
        handle, hold.handle = hold.handle, None
        if handle is not None:
            close_handle(_system, handle)

    def _reopen(self, hold: _Hold) -> None:
        """Somebody deleted or replaced the lock file: ours is a lock that nobody else will ask for."""
        self._close(hold)
        hold.handle = open_handle(_system, self._path, self._mode)
        hold.identity = _system.identify(hold.handle, self._path)

    # What follows waits.

    def _wait(self, hold: _Hold, limit: float | None) -> None:
        if limit is None:
            self._refuse_deadlock(hold)
            _system.wait_first(hold.handle, self._path, self._shared)
            _system.wait_second(hold.handle, self._path, self._shared)
            return
        if limit == 0:
            raise LockTimeout(self._path)
        ended = threading.Lock()
        ended.acquire()
        left = self._left(hold, limit)
        if not self._lend(hold, ended.release):
            for pause in self._polls(hold, limit):
                time.sleep(pause)
            return
        ended.acquire(timeout=min(left, threading.TIMEOUT_MAX))
        self._take_back(hold, limit)

    async def _wait_async(self, hold: _Hold, limit: float | None) -> None:
        if limit is None:
            self._refuse_deadlock(hold)
        elif limit == 0:
            raise LockTimeout(self._path)
        loop = asyncio.get_running_loop()
        ended = loop.create_future()

        def set_ended() -> None:
            if not ended.done():
                ended.set_result(None)

        def notify() -> None:
            with contextlib.suppress(RuntimeError):  # the loop was closed: nobody waits any more
                loop.call_soon_threadsafe(set_ended)

        left = None if limit is None else self._left(hold, limit)
        if not self._lend(hold, notify):
            for pause in self._polls(hold, limit):
                await asyncio.sleep(pause)
            return
        await asyncio.wait([ended], timeout=left)
        self._take_back(hold, limit)

    def _left(self, hold: _Hold, limit: float) -> float:
        """The seconds that are left of ``limit``, which began with the first wait for this hold."""
        now = time.monotonic()
        if hold.end is None:
            hold.end = now + limit
        return max(0.0, hold.end - now)

    def _lend(self, hold: _Hold, notify: Callable[[], None]) -> bool:
        """Let a thread wait with the descriptor; False where none can be started (a limit of processes).

        The hold knows the waiter before its thread runs: whatever exception comes from then on, `_put_back`
        finds it, and no lock is granted to nobody.
        """

        def keep(wait: waiter.Waiter | None) -> None:
            hold.wait = wait

        handle, hold.handle = hold.handle, None
        try:
            waiter.wait_for(_system, handle, hold.identity, self._path, self._shared, notify, keep)
        except RuntimeError:
            hold.handle = handle
            return False
        return True

    def _polls(self, hold: _Hold, limit: float | None) -> Iterator[float]:
        """The pauses between tries, where there is no thread to wait; ends with the lock taken."""
        while not _system.try_both(hold.handle, self._path, self._shared):
            left = _POLL_SECONDS if limit is None else self._left(hold, limit)
            if not left:
                raise LockTimeout(self._path, limit or 0.0)
            yield min(left, _POLL_SECONDS)

    def _take_back(self, hold: _Hold, limit: float | None) -> None:
        """The wait has ended, or the time for it has."""
        wait = self._end_wait(hold)
        if hold.handle is None:
            raise LockTimeout(self._path, limit or 0.0)
        if wait is not None and wait.error is not None:
            raise wait.error

    def _end_wait(self, hold: _Hold) -> waiter.Waiter | None:
        """Take the descriptor from the waiter if its wait has ended, else walk away from it."""
        wait = hold.wait
        if wait is not None and not waiter.walk_away(wait):
            hold.handle = wait.handle
        hold.wait = None
        return wait

    def _limit(self, timeout: float | _Default | None) -> float | None:
        if isinstance(timeout, _Default):
            return self._timeout
        _check_timeout(timeout)
        return timeout

    def _refuse_deadlock(self, hold: _Hold) -> None:
        here = _owners_here()
        for other in _all_locks():
            for owner in here:
                held = other._holds.get(owner)
                if held is not None and held.identity == hold.identity:
                    raise LockDeadlockError(
                        f"lock {self._path!r} is held by this very thread or task, through another FileLock "
                        "object or call: it would wait for itself for ever; share one object, or set a timeout"
                    )

    # What follows knows who holds.

    def _owner_here(self, *, task_first: bool = False) -> Owner | None:
        for owner in _owners_here()[:: -1 if task_first else 1]:
            if owner in self._holds:
                return owner
        return None

    def _undo_inherited(self) -> bool:
        # After a fork asyncio tells no current task, though the child may be leaving its parent's `async with`.
        tasks = [owner for owner in self._inherited if isinstance(owner, asyncio.Task)]
        for owner in (*_owners_here(), *tasks):
            depth = self._inherited.get(owner, 0)
            if depth:
                self._inherited[owner] = depth - 1
                return True
        return False

    def _forget(self) -> None:
        """Begin with nothing: a new lock, or one in a forked child, where the descriptors are closed."""
        self._inherited: dict[Owner, int] = {owner: hold.depth for owner, hold in getattr(self, "_holds", {}).items()}
        self._holds: dict[Owner, _Hold] = {}
        self._idle: list[_Hold] = []


_locks: weakref.WeakValueDictionary[int, FileLock] = weakref.WeakValueDictionary()


def _all_locks() -> list[FileLock]:
    # `valuerefs` copies in one step: to iterate would fail while another thread makes a lock.
    return [lock for ref in _locks.valuerefs() if (lock := ref()) is not None]


def _owners_here() -> tuple[Owner, ...]:
    thread = threading.current_thread()
    try:
        task = asyncio.current_task()
    except RuntimeError:  # no event loop runs in this thread
        return (thread,)
    return (thread,) if task is None else (thread, task)


def _rebuild(path: str, timeout: float | None, shared: bool, mode: int) -> FileLock:
    return FileLock(path, timeout=timeout, shared=shared, mode=mode)


def _check_timeout(timeout: float | None) -> None:
    if timeout is not None and not timeout >= 0:
        raise ValueError(f"timeout {timeout!r}: give seconds, 0 not to wait, or None to wait for ever")
    if timeout is not None and math.isinf(timeout):
        raise ValueError("timeout inf: give None to wait for ever")


def _after_fork_in_child() -> None:
    for lock in _all_locks():
        lock._forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
