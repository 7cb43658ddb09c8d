"""The file lock: exclusive or shared between replicas, in every language.

A `FileLock` keeps one descriptor open between uses. The kernel decides who has the lock, also between threads and tasks
of one process: each holds or waits on its own descriptor, a `sharedvol.locks.file.hold.Hold`. The `FileLock` counts the
holds of each thread and task.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any, Final

from sharedvol import forks, native
from sharedvol.errors import LockError, LockFileError, LockTimeout, NotLockedError
from sharedvol.locks.arguments import DEFAULT, Default, check_purpose, check_timeout, limit_of
from sharedvol.locks.backend import LockBackend
from sharedvol.locks.file import linux, portable
from sharedvol.locks.file.fencing import FencingFiles
from sharedvol.locks.file.hold import Hold
from sharedvol.locks.file.holder_file import FileHolder, holder_of, read_record
from sharedvol.locks.file.owners import OwnerTable
from sharedvol.locks.grant import Grant, Owner, calling_task
from sharedvol.locks.held import AcquiredLock, BlockLock
from sharedvol.network import NetworkPolicy

_BACKEND: Final[LockBackend] = linux if linux.AVAILABLE else portable


class FileLock(BlockLock):
    """An advisory lock on its own file, for all processes that share the volume.

    Excludes every process that locks the same file with flock(2) or fcntl(2), in any language and
    container of the machine: Python's filelock, portalocker and fasteners, flock(1), R's filelock.
    The kernel releases it the moment its holder dies.

    ::

        lock = FileLock("/app/shared/locks/index.lock")
        with lock:
            ...

    Create the object once and keep it, because it keeps its descriptor open. The lock is re-entrant for the thread (or
    asyncio task) that holds it, and excludes all others, including those that use the same object. Several can hold a
    shared lock at once. In a coroutine use ``async with``: a plain ``with`` blocks the event loop while it waits. The
    end of a ``with`` may run in another thread than its start. A forked child starts without the lock. The file is
    never deleted. Never open it for anything else: on Linux, closing any descriptor of it releases the lock of an R
    process.

    Args:
        path: the lock file. It is created if it is missing; its directory must exist. Never use a data file.
        timeout: seconds to wait. None waits indefinitely, 0 does not wait. `acquire` can override it.
        shared: whether other shared holders can hold the lock at the same time.
        mode: permission bits of the lock file, if it is created, and of the files next to it. By default every user can
            open it, so that replicas with different users can share it: the file is empty.
        fenced: whether each hold has a `token`, greater than those of all earlier fenced holds. Others can then query
            the `holder`. This keeps ``<path>.token`` and ``<path>.holder`` next to the lock file.
        purpose: what a fenced lock is held for, shown by `holder`; at most 200 characters.
        allow_network: accept a network file system without a warning.
        strict: refuse a network file system. None uses the environment variable ``SHAREDVOL_STRICT``.

    Raises:
        LockError: eventlet has replaced the threads of this process.
        ValueError: ``timeout`` is negative or not a number, ``purpose`` is too long, or ``fenced`` is combined with
            ``shared``, or ``allow_network`` with ``strict``.
    """

    _backend: LockBackend = _BACKEND

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        timeout: float | None = None,
        shared: bool = False,
        mode: int = 0o666,
        fenced: bool = False,
        purpose: str = "",
        allow_network: bool = False,
        strict: bool | None = None,
    ) -> None:
        native.refuse_eventlet()
        check_timeout(timeout)
        check_purpose(purpose)
        if fenced and shared:
            raise ValueError("fenced and shared: only an exclusive holder has a token")
        self._path = os.path.abspath(os.fspath(path))  # a later chdir must not change which file is meant
        self._timeout, self._shared, self._mode = timeout, shared, mode
        self._fenced, self._purpose = fenced, purpose
        self._network, self._own = NetworkPolicy(allow_network, strict), OwnerTable()

    @property
    def path(self) -> Path:
        """The lock file, absolute."""
        return Path(self._path)

    @property
    def shared(self) -> bool:
        """Whether the lock is held together with other shared holders."""
        return self._shared

    @property
    def fenced(self) -> bool:
        """Whether each hold has a token."""
        return self._fenced

    @property
    def timeout(self) -> float | None:
        """The seconds to wait unless `acquire` overrides them."""
        return self._timeout

    @property
    def held(self) -> bool:
        """Whether the calling thread or the running task holds the lock. Call `check` to find out if it was lost."""
        return self._own.of_caller() is not None

    @property
    def token(self) -> int:
        """The fencing token of the caller's hold: greater than that of every earlier fenced hold of this lock file.

        Raises:
            LockError: the lock was not made with ``fenced=True``.
            NotLockedError: the caller does not hold it.
        """
        if not self._fenced:
            raise LockError(f"lock {self._path!r} has no fencing token: make it with fenced=True")
        grant = self._own.of_caller()
        beside = self._own.held[grant].beside if grant is not None else None
        if beside is None or beside.token is None:
            raise self._not_held()
        return beside.token

    def acquire(self, timeout: float | Default | None = DEFAULT) -> AcquiredLock[FileLock]:
        """Take the lock, waiting in the kernel.

        The returned object releases the lock from any thread or task: use ``with`` on it, or call its ``release``. The
        lock's own `release` undoes the last acquire of the calling thread.

        Args:
            timeout: seconds to wait. None waits indefinitely, 0 does not wait. The default is the lock's own.

        Raises:
            LockTimeout: the lock was not free in time. For a fenced lock it has the ``holder``.
            LockDeadlockError: this thread holds the file through another object and would wait for itself.
            LockFileError: the lock file or the fencing file cannot be opened, locked or used.
            NetworkFileSystemError: the file is on a network file system, and the lock is ``strict``.
            ValueError: ``timeout`` is negative or not a number.
        """
        acquired = AcquiredLock(self)  # first: it must not fail, or be interrupted, under the lock
        self._acquire(timeout, None, acquired)
        return acquired  # not kept: a cycle would keep the descriptor of a dropped lock

    def _acquire(
        self, timeout: float | Default | None, block: int | None, acquired: AcquiredLock[FileLock] | None
    ) -> FileLock:
        forks.notice()
        own, owner = self._own, threading.current_thread()
        own.watch(owner)
        if own.held and own.reenter(owner, block, acquired):
            return self
        limit = self._timeout if timeout is DEFAULT else limit_of(timeout, self._timeout)
        grant = Grant(owner)
        hold = own.kept() or self._new()
        try:
            hold.acquire(limit)
            grant.add(block, acquired)
            grant.enter()
            own.add(grant, hold)
            return self
        except BaseException as error:
            self._put_back(grant, hold, error)
            raise

    def acquire_async(self, timeout: float | Default | None = DEFAULT) -> Coroutine[Any, Any, AcquiredLock[FileLock]]:
        """Take the lock for the calling task, without blocking the event loop.

        The calling task is the owner even if another task runs the coroutine, as `asyncio.gather` and, up to Python
        3.11, `asyncio.wait_for` do. A cancelled wait gives up its place. ``async with lock:`` acquires and releases.

        Raises:
            LockTimeout, LockDeadlockError, LockFileError, ValueError: as `acquire`.
            RuntimeError: called outside a task.
        """
        return self._acquire_async(timeout, None, calling_task(), AcquiredLock(self))

    async def _acquire_async(
        self,
        timeout: float | Default | None,
        block: int | None,
        caller: Owner | None,
        acquired: AcquiredLock[FileLock],
    ) -> AcquiredLock[FileLock]:
        owner = caller or calling_task()
        if owner is None:
            raise RuntimeError("acquire_async must run in an asyncio task")
        forks.notice()
        self._own.watch(owner)
        if self._own.held and self._own.reenter(owner, block, acquired):
            return acquired
        limit = limit_of(timeout, self._timeout)
        grant = Grant(owner)
        hold = self._own.kept() or self._new()
        try:
            await hold.acquire_async(limit, owner)
            grant.add(block, acquired)
            self._own.add(grant, hold)
            return acquired
        except BaseException as error:
            self._put_back(grant, hold, error)
            raise

    def release(self) -> None:
        """Undo one `acquire` of this thread or task. The last one releases the lock.

        A forked child starts without the lock, so undoing an acquire of its parent does nothing there.

        Raises:
            NotLockedError: the caller does not hold the lock. The object that `acquire` returned releases it anywhere.
            LockLostError: the lock was lost before; everything is released. A fenced lock detects every kind of loss
                except a moved directory. A plain lock detects only a closed descriptor: call `check` for the others.
        """
        self._release(self._own.of_caller())

    def _release(
        self, grant: Grant | None, block: int | None = None, acquired: AcquiredLock[Any] | None = None
    ) -> None:
        if grant is None or (acquired is not None and not grant.active):
            if self._own.undo_inherited(grant, block):
                return
            raise self._not_held()
        try:
            lost = self._own.undo(grant, block, acquired=acquired)
        except KeyError:  # another thread released it at this moment
            raise self._not_held() from None
        if lost is not None:
            raise lost

    def _release_acquired(self, acquired: AcquiredLock[FileLock]) -> None:
        forks.notice()
        grant = acquired.grant
        if grant is None:
            raise self._not_held()
        self._release(grant, acquired=acquired)

    def _free_orphan(self, grant: Grant) -> None:
        self._own.free_orphan(grant)

    def check(self) -> None:
        """Check that the lock was not lost: the caller's hold or, without one, every hold of this process.

        Raises:
            LockLostError: other code closed the descriptor, the lock file was deleted or replaced, or the fencing file
                has another holder's token. Another process may have the lock by now.
            NotLockedError: no thread or task of this process holds the lock.
        """
        grant = self._own.of_caller()
        held = {grant: self._own.held[grant]} if grant is not None else self._own.held.copy()
        if not held:
            raise self._not_held()
        for one, hold in held.items():
            grants = hold.grants
            reason = hold.why_lost()
            # Otherwise it was released during the check, and the reason means nothing.
            if reason is not None and self._own.held.get(one) is hold and hold.grants == grants:
                raise hold.lost(reason)

    def holder(self) -> FileHolder | None:
        """Return the current holder, which may be the caller. None if the lock is free.

        Whether the lock is held is read from the kernel and never blocks. The other fields were written by a fenced
        holder, and any process that may write to the volume can forge them. This takes no lock, with one exception: in
        a container, where the flock(2) of another container is not visible, it tries a shared flock for an instant.

        Raises:
            LockFileError: the lock file cannot be read.
        """
        return holder_of(self._path)

    def _leave(self, block: int, *, task_first: bool) -> None:
        self._release(self._own.of_block(block, task_first=task_first), block)

    def fileno(self) -> int:
        """Return the descriptor of the caller's hold, to pass it to a program that must hold the lock as well.

        Both locks belong to the open file description: a program that inherits it keeps the lock until that program
        has ended. Never read, write or unlock through it.

        Raises:
            NotLockedError: the caller does not hold the lock.
        """
        grant = self._own.of_caller()
        handle = self._own.held[grant].handle if grant is not None else None
        if not isinstance(handle, int):
            raise NotLockedError(f"lock {self._path!r} is not held by this thread or task: it has no descriptor")
        return handle

    def __repr__(self) -> str:
        kind = "shared " if self._shared else "fenced " if self._fenced else ""
        return f"<{kind}FileLock {self._path!r} {'held' if self.held else 'not held'} here>"

    def __reduce__(self) -> tuple[Callable[..., FileLock], tuple[object, ...]]:
        rebuild = partial(
            FileLock,
            timeout=self._timeout,
            shared=self._shared,
            mode=self._mode,
            fenced=self._fenced,
            purpose=self._purpose,
            allow_network=self._network.allow,
            strict=self._network.strict,
        )
        return rebuild, (self._path,)  # the same file, not the same hold

    def __del__(self) -> None:
        with contextlib.suppress(Exception):  # __init__ may have failed; the interpreter may be ending
            self._own.close()

    def _new(self) -> Hold:
        """Open a new descriptor."""
        return Hold(self._backend, self._path, self._mode, self._shared, self._beside(), self._network)

    def _beside(self) -> FencingFiles | None:
        if not self._fenced:
            return None
        if self._backend is portable:
            raise LockFileError(
                errno.EOPNOTSUPP,
                f"cannot fence lock {self._path!r}: this kernel has no open file description locks; "
                "use Linux, or fenced=False",
                self._path,
            )
        return FencingFiles(self._path, self._mode, self._purpose)

    def _put_back(self, grant: Grant, hold: Hold, error: BaseException) -> None:
        """Unlock after a failed acquire. Add the holder to a timeout of a fenced lock."""
        self._own.put_back(grant, hold)
        if self._fenced and isinstance(error, LockTimeout):
            said = read_record(self._path)
            error.holder = FileHolder(**said) if said is not None else None

    def _not_held(self) -> NotLockedError:
        return NotLockedError(
            f"lock {self._path!r} is not held by this thread or task: release it there, and once; to release it "
            "elsewhere, keep what acquire() returned and release that, or use `with lock:`"
        )
