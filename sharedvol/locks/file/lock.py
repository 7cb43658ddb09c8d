"""The file lock: exclusive or shared between replicas, in every language.

A `FileLock` keeps one descriptor open between uses and lets the kernel decide who has the lock, between
threads and tasks of one process too: each that holds or waits does so on a descriptor of its own, a
`sharedvol.locks.file.hold.Hold`. What stays here is who holds how many times, and what is said of it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from sharedvol import forks, native
from sharedvol.errors import LockError, LockFileError, LockTimeout, NotLockedError
from sharedvol.locks.arguments import DEFAULT, Default, check_purpose, check_timeout, limit_of
from sharedvol.locks.file import linux, portable
from sharedvol.locks.file.fencing import FencingFiles
from sharedvol.locks.file.hold import Hold
from sharedvol.locks.file.holder_file import FileHolder, holder_of, read_record
from sharedvol.locks.file.owners import OwnerTable
from sharedvol.locks.grant import Grant, Owner, calling_task
from sharedvol.locks.held import AcquiredLock, BlockLock
from sharedvol.network import NetworkPolicy

_system: Final[ModuleType] = linux if linux.AVAILABLE else portable


class FileLock(BlockLock):
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
    several at once. In a coroutine use ``async with``: a plain ``with`` stops the loop while it waits. The
    end of a ``with`` may run in another thread than its beginning. A forked child starts without it. The
    file is never deleted, and must never be opened for anything else: on Linux, closing any descriptor of
    it drops the lock of an R process.

    Args:
        path: the lock file, created where missing; its directory must exist. Never a data file.
        timeout: seconds to wait; None waits for ever, 0 not at all. `acquire` can say otherwise.
        shared: hold it together with other shared holders.
        mode: permission bits of a lock file that is created here, and of the files beside it. Everyone by
            default, so that replicas with different users can share it: the file holds nothing.
        fenced: each hold has a `token`, greater than those of all earlier fenced holds, and others can ask by
            `holder` who has it. For that ``<path>.token`` and ``<path>.holder`` lie beside the lock file.
        purpose: what a fenced lock's holder says that it is for, at most 200 characters.
        allow_network: accept a network file system without a warning.
        strict: refuse one; None as the environment variable ``SHAREDVOL_STRICT`` says.

    Raises:
        LockError: eventlet has replaced the threads of this process.
        ValueError: ``timeout`` is negative or not a number; ``fenced`` and ``shared``; ``purpose`` is too long;
            ``allow_network`` and ``strict``.
    """

    _backend: ModuleType = _system

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
        self._network = NetworkPolicy(allow_network, strict)
        self._own = OwnerTable()

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
        """The seconds to wait unless `acquire` says otherwise."""
        return self._timeout

    @property
    def held(self) -> bool:
        """Whether the calling thread, or the running task, holds the lock. Whether it was lost, `check` tells."""
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

        What is returned releases it: by a ``with`` on it or by its ``release``, from any thread or task. `release` of
        the lock undoes the last acquire of the calling thread.

        Args:
            timeout: seconds to wait, None for ever, 0 not at all; else as the lock was made.

        Raises:
            LockTimeout: it was not free in time. Of a fenced lock it tells the ``holder``.
            LockDeadlockError: this thread holds the file through another object and would wait for ever.
            LockFileError: the file, or the fencing file, cannot be opened, locked or used where it is.
            NetworkFileSystemError: it is on a network file system, and the lock is ``strict``.
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
        """As `acquire`, for the task that calls it, and without blocking the event loop.

        It is that task's also where another one waits for it, as `asyncio.gather` and, up to Python 3.11,
        `asyncio.wait_for` have it. A cancelled wait gives up its place. ``async with lock:`` does this and releases.

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
        """Undo one `acquire` of this thread or task; the last one frees the lock.

        In a forked child, which started without the lock, undoing its parent's acquire does nothing.

        Raises:
            NotLockedError: the caller does not hold the lock. What the acquire returned releases it from anywhere.
            LockLostError: it was lost before, as `check` tells; everything is freed. Of a plain lock only what costs
                nothing to know is told here: that its descriptor was closed.
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
        """Ask whether the lock is still held: by the caller, or else by any thread or task of this process.

        Raises:
            LockLostError: its descriptor was closed by other code, the lock file was deleted or replaced, or the
                fencing file has the token of another. Another process may have the lock by now.
            NotLockedError: nobody in this process holds it.
        """
        grant = self._own.of_caller()
        held = {grant: self._own.held[grant]} if grant is not None else self._own.held.copy()
        if not held:
            raise self._not_held()
        for one, hold in held.items():
            grants = hold.grants
            reason = hold.why_lost()
            # Else it was released while this looked, and what was seen means nothing.
            if reason is not None and self._own.held.get(one) is hold and hold.grants == grants:
                raise hold.lost(reason)

    def holder(self) -> FileHolder | None:
        """Who has the lock now, the caller included; None if nobody has.

        That somebody has it is the kernel's word. The rest a fenced holder wrote of itself: it can be forged by
        whoever may write to the volume. Waits for nobody, and takes nothing; but in a container, where nothing
        else shows that another one has the flock(2), it tries that shared for an instant if no other sign is there.

        Raises:
            LockFileError: it cannot be asked: the lock file cannot be read.
        """
        return holder_of(self._path)

    def _leave(self, block: int, *, task_first: bool) -> None:
        self._release(self._own.of_block(block, task_first=task_first), block)

    def fileno(self) -> int:
        """The descriptor of the lock that the caller holds: to hand to a program that is to hold it too.

        Both locks belong to the open file description: a program that inherits it keeps the lock until
        it, too, has ended. Never read, write or unlock through it.

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
        # A lock that is sent to another process is the same file, not the same hold.
        settings = (self._path, self._timeout, self._shared, self._mode, self._fenced, self._purpose)
        return _rebuild, (*settings, self._network.allow, self._network.strict)

    def __del__(self) -> None:
        with contextlib.suppress(Exception):  # __init__ may have failed; the interpreter may be ending
            self._own.close()

    def _new(self) -> Hold:
        """A descriptor, where none was kept."""
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
        """After a failed acquire: nothing is locked, and a time-out says by whom it is."""
        self._own.put_back(grant, hold)
        if self._fenced and isinstance(error, LockTimeout):
            said = read_record(self._path)
            error.holder = FileHolder(**said) if said is not None else None

    def _not_held(self) -> NotLockedError:
        return NotLockedError(
            f"lock {self._path!r} is not held by this thread or task: release it there, and once; to release it "
            "elsewhere, keep what acquire() returned and release that, or use `with lock:`"
        )


def _rebuild(
    path: str,
    timeout: float | None,
    shared: bool,
    mode: int,
    fenced: bool = False,
    purpose: str = "",
    allow_network: bool = False,
    strict: bool | None = None,
) -> FileLock:
    return FileLock(
        path,
        timeout=timeout,
        shared=shared,
        mode=mode,
        fenced=fenced,
        purpose=purpose,
        allow_network=allow_network,
        strict=strict,
    )
