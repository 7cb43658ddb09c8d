"""A semaphore between replicas: at most n hold it at once, in the order of their requests.

A permit is an exclusive lock on the file ``<path>.<i>.lock``. A process that wants one first takes
``<path>.queue.lock``, so the kernel keeps the order. The process at the front waits in the kernel for all permits at
once, in one thread each. When it gets one, it walks away from the others. The kernel frees all of these locks when
their holder dies.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

from sharedvol import forks, native
from sharedvol.errors import LockFileError, LockTimeout, NotLockedError
from sharedvol.locks.arguments import DEFAULT, Default, check_purpose, check_timeout, limit_of
from sharedvol.locks.file import FileLock, linux
from sharedvol.locks.file.hold import Notice
from sharedvol.locks.file.holder_file import FileHolder, holder_of
from sharedvol.locks.file.permits import Attempt, Permit, Queue
from sharedvol.locks.file.proc_locks import ProcLocks
from sharedvol.locks.grant import Grant, Owner, calling_task, of_block, of_caller
from sharedvol.locks.held import AcquiredLock, BlockLock
from sharedvol.network import NetworkPolicy

_POLL_SECONDS: Final = 0.01  # where no thread can be started to wait


class Semaphore(BlockLock):
    """At most ``n`` holders at once, among all processes that share the volume.

    ::

        with Semaphore("/app/shared/locks/render", 4, timeout=60) as semaphore:
            ...  # never more than four at once

    Each `acquire` takes a permit, also a second `acquire` of the same thread. The object that it returns releases the
    permit anywhere; `release` works in the thread or task that acquired. Permits are granted in the order of requests.
    Use the same ``n`` everywhere: if two differ, the greater one applies.

    Args:
        path: the start of the lock files' names; its directory must exist.
        n: the number of permits.
        timeout: seconds to wait. None waits indefinitely, 0 does not wait. `acquire` can override it.
        purpose: what a permit is held for, shown by `holders`; at most 200 characters.
        mode: permission bits of files that are created here.
        allow_network, strict: as for `FileLock`.

    Raises:
        ValueError: ``n`` is less than 1, ``timeout`` is negative or not a number, ``purpose`` is too long, or
            ``allow_network`` is combined with ``strict``.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        n: int,
        *,
        timeout: float | None = None,
        purpose: str = "",
        mode: int = 0o666,
        allow_network: bool = False,
        strict: bool | None = None,
    ) -> None:
        if not isinstance(n, int):
            raise TypeError(f"n {n!r}: give a whole number of holders")
        if n < 1:
            raise ValueError(f"a semaphore of {n} would let nobody in: give 1 or more")
        check_timeout(timeout)
        check_purpose(purpose)
        if not linux.AVAILABLE:
            raise LockFileError(
                errno.EOPNOTSUPP, "a semaphore needs open file description locks: use Linux", os.fspath(path)
            )
        self._path = os.path.abspath(os.fspath(path))
        self._timeout, self._purpose, self._mode = timeout, purpose, mode
        self._network = NetworkPolicy(allow_network, strict)
        self._queue = FileLock(f"{self._path}.queue.lock", mode=mode, allow_network=allow_network, strict=strict)
        self._permits = [Permit(f"{self._path}.{number}.lock", mode, purpose, self._network) for number in range(n)]

    @property
    def path(self) -> Path:
        """The start of the lock files' names, absolute."""
        return Path(self._path)

    @property
    def n(self) -> int:
        """The number of permits."""
        return len(self._permits)

    @property
    def held(self) -> bool:
        """Whether the calling thread, or the running task, holds a permit."""
        return self._last() is not None

    @property
    def permit(self) -> int:
        """The number, from 0, of the permit that the caller acquired last.

        Raises:
            NotLockedError: the caller holds no permit.
        """
        last = self._last()
        if last is None:
            raise self._not_held()
        return self._permits.index(last)

    def acquire(self, timeout: float | Default | None = DEFAULT) -> AcquiredLock[Semaphore]:
        """Take a permit, waiting in the kernel.

        The returned object releases the permit from any thread or task: use ``with`` on it, or call its ``release``.
        The semaphore's own `release` releases the last permit of the calling thread.

        Args:
            timeout: seconds to wait. None waits indefinitely, 0 does not wait. The default is the semaphore's own.

        Raises:
            LockTimeout: no permit was free in time.
            LockDeadlockError: this thread holds all permits and would wait for itself.
            LockFileError: a lock file cannot be opened or locked.
            NetworkFileSystemError: the files are on a network file system, and the semaphore is ``strict``.
            ValueError: ``timeout`` is negative or not a number.
        """
        acquired = AcquiredLock(self)
        self._acquire(timeout, None, acquired)
        return acquired

    def _acquire(
        self, timeout: float | Default | None, block: int | None, acquired: AcquiredLock[Semaphore] | None
    ) -> Semaphore:
        limit = limit_of(timeout, self._timeout)
        end = None if limit is None else time.monotonic() + limit
        attempt = self._attempt(Grant(threading.current_thread()), block, acquired)
        queue = Queue(self._queue, self._path, limit)
        try:
            with queue:
                if not attempt.try_all():
                    woken = native.bell()
                    try:
                        for left in self._waits(attempt, limit, end, woken.ring):
                            woken.wait(left)
                    finally:
                        woken.close()
            return self
        except BaseException:
            self._undo(attempt, queue)
            raise

    def acquire_async(self, timeout: float | Default | None = DEFAULT) -> Coroutine[Any, Any, AcquiredLock[Semaphore]]:
        """As `acquire`, for the task that calls it, and without blocking the event loop.

        It is that task's also where another one waits for it, as `FileLock.acquire_async`.

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
        acquired: AcquiredLock[Semaphore],
    ) -> AcquiredLock[Semaphore]:
        owner = caller or calling_task()
        if owner is None:
            raise RuntimeError("acquire_async must run in an asyncio task")
        limit = limit_of(timeout, self._timeout)
        end = None if limit is None else time.monotonic() + limit
        attempt = self._attempt(Grant(owner), block, acquired)
        queue = Queue(self._queue, self._path, limit)
        try:
            async with queue:
                if not attempt.try_all():
                    woken = Notice()
                    for left in self._waits(attempt, limit, end, woken.tell, owner):
                        await woken.wait(left)
            return acquired
        except BaseException:
            self._undo(attempt, queue)
            raise

    def release(self) -> None:
        """Release the permit that this thread or task acquired last.

        A forked child starts without permits, so undoing an acquire of its parent does nothing there.

        Raises:
            NotLockedError: the caller holds no permit. The object that `acquire` returned releases its permit anywhere.
            LockLostError: the lock file was deleted or replaced, or its descriptor closed; everything is released.
        """
        forks.notice()
        self._release(of_caller(list(self._held())))

    def _release(
        self, grant: Grant | None, block: int | None = None, acquired: AcquiredLock[Any] | None = None
    ) -> None:
        permit = None if grant is None else self._held().get(grant)
        if grant is None or permit is None:
            if any(permit.undo_inherited(grant, block) for permit in self._permits):
                return
            raise self._not_held()
        try:
            lost = permit.undo(grant, block, acquired=acquired)
        except KeyError:  # another thread released it at this moment
            raise self._not_held() from None
        if lost is not None:
            raise lost

    def _release_acquired(self, acquired: AcquiredLock[Semaphore]) -> None:
        forks.notice()
        grant = acquired.grant
        if grant is None:
            raise self._not_held()
        self._release(grant, acquired=acquired)

    def _free_orphan(self, grant: Grant) -> None:
        for permit in self._permits:
            permit.free_orphan(grant)

    def holders(self) -> list[FileHolder]:
        """Return the current holders of permits, which may include the caller: see `FileLock.holder`.

        Raises:
            LockFileError: a lock file cannot be read.
        """
        asked = ProcLocks()
        found = (holder_of(permit.path, asked) for permit in self._permits)
        return [holder for holder in found if holder is not None]

    def _leave(self, block: int, *, task_first: bool) -> None:
        forks.notice()

        def ended_early(block: int) -> str:
            return next((how for permit in self._permits if (how := permit.ended_early(block))), "")

        self._release(of_block(list(self._held()), block, ended_early, task_first=task_first), block)

    def __repr__(self) -> str:
        return f"<Semaphore {self._path!r} of {self.n}, {'held' if self.held else 'not held'} here>"

    def __reduce__(self) -> tuple[Callable[..., Semaphore], tuple[object, ...]]:
        rebuild = partial(
            Semaphore,
            timeout=self._timeout,
            purpose=self._purpose,
            mode=self._mode,
            allow_network=self._network.allow,
            strict=self._network.strict,
        )
        return rebuild, (self._path, self.n)

    def __del__(self) -> None:
        with contextlib.suppress(Exception):  # __init__ may have failed; the interpreter may be ending
            for permit in self._permits:
                permit.close()

    def _attempt(self, grant: Grant, block: int | None, acquired: AcquiredLock[Semaphore] | None) -> Attempt:
        return Attempt(self._permits, grant, lambda: grant.add(block, acquired))

    def _waits(
        self,
        attempt: Attempt,
        limit: float | None,
        end: float | None,
        notify: Callable[[], None],
        task: Owner | None = None,
    ) -> Iterator[float | None]:
        """Yield the seconds to wait for a notice, None for no limit. Ends when a permit is granted.

        Raises:
            LockTimeout: no permit was free in time.
        """
        if limit is None:
            attempt.refuse_deadlock(self._path, task)
        while True:
            left = None if end is None else max(0.0, end - time.monotonic())
            if left == 0:
                raise LockTimeout(self._path, limit or 0.0)
            waiting = attempt.lend_all(notify)
            yield left if waiting else _POLL_SECONDS
            if attempt.end_waits() or (not waiting and attempt.try_all()):
                return

    def _undo(self, attempt: Attempt, queue: Queue) -> None:
        try:
            attempt.undo()
        finally:
            queue.leave()  # after an interrupt it may still be in the queue, and every other process would wait

    def _last(self) -> Permit | None:
        """Return the permit that the caller acquired last."""
        forks.notice()
        held = self._held()
        grant = of_caller(list(held))
        return None if grant is None else held[grant]

    def _held(self) -> dict[Grant, Permit]:
        """Return the permits of this process through this object, in the order in which they were granted."""
        held = []
        for permit in self._permits:
            if permit.held:
                held += [(hold.grants, grant, permit) for grant, hold in list(permit.held.items())]
        if len(held) > 1:
            held.sort(key=lambda one: one[0])
        return {grant: permit for _, grant, permit in held}

    def _not_held(self) -> NotLockedError:
        return NotLockedError(
            f"no permit of semaphore {self._path!r} is held by this thread or task: release it there, and once; to "
            "release it elsewhere, keep what acquire() returned and release that, or use `with semaphore:`"
        )
