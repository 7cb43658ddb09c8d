"""A semaphore between replicas: at most n of them inside, in the order in which they came.

A permit is a lock file, ``<path>.<i>.lock``, held exclusively. Who wants one takes ``<path>.queue.lock`` first, so the
kernel keeps the order; the one at the front waits in the kernel for all the permits at once, in one thread each, and
walks away from the others when it is granted one. All of these are freed by the kernel when their holder dies.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
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
    """At most ``n`` holders at once, among all who share the volume.

    ::

        with Semaphore("/app/shared/locks/render", 4, timeout=60) as semaphore:
            ...  # here are never more than four

    Each `acquire` takes a permit, also a second one of the same thread. What it returns releases it from anywhere, and
    `release` does in the thread or task that acquired. Permits are given in the order of coming. Use the same ``n``
    everywhere: where two differ, the greater counts.

    Args:
        path: what the lock files' names begin with; its directory must exist.
        n: how many permits there are.
        timeout: seconds to wait; None waits for ever, 0 not at all. `acquire` can say otherwise.
        purpose: what a holder says that it is for, at most 200 characters.
        mode: permission bits of files that are created here.
        allow_network, strict: as for `FileLock`.

    Raises:
        ValueError: ``n`` is less than 1; ``timeout`` is negative or not a number; ``purpose`` is too long;
            ``allow_network`` and ``strict``.
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
        """What the lock files' names begin with, absolute."""
        return Path(self._path)

    @property
    def n(self) -> int:
        """How many permits there are."""
        return len(self._permits)

    @property
    def held(self) -> bool:
        """Whether the calling thread, or the running task, holds a permit."""
        return self._last() is not None

    @property
    def permit(self) -> int:
        """The number of the caller's permit, from 0; of the last one that it acquired.

        Raises:
            NotLockedError: it holds none.
        """
        last = self._last()
        if last is None:
            raise self._not_held()
        return self._permits.index(last)

    def acquire(self, timeout: float | Default | None = DEFAULT) -> AcquiredLock[Semaphore]:
        """Take a permit, waiting in the kernel.

        What is returned releases it: by a ``with`` on it or by its ``release``, from any thread or task. `release` of
        the semaphore gives back the last permit of the calling thread.

        Args:
            timeout: seconds to wait, None for ever, 0 not at all; else as the semaphore was made.

        Raises:
            LockTimeout: none was free in time.
            LockDeadlockError: this thread holds all of them and would wait for ever.
            LockFileError: a lock file cannot be opened or locked where it is.
            NetworkFileSystemError: they are on a network file system, and the semaphore is ``strict``.
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
        """Give back the permit that this thread or task acquired last.

        In a forked child, which started without any, undoing its parent's acquire does nothing.

        Raises:
            NotLockedError: the caller holds none. What an acquire returned releases it from anywhere.
            LockLostError: its lock file was deleted or replaced, or its descriptor closed; everything is freed.
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
        """Who holds the permits now, the caller included, as `FileLock.holder` tells it.

        Raises:
            LockFileError: it cannot be asked: a lock file cannot be read.
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
        settings = (self._path, self.n, self._timeout, self._purpose, self._mode)
        return _rebuild, (*settings, self._network.allow, self._network.strict)

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
        """The seconds to wait for a notice, None until it comes; ends when a permit is granted.

        Raises:
            LockTimeout: time is up.
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
            queue.leave()  # it has, unless an interrupt came in between: then everybody would wait for us for ever

    def _last(self) -> Permit | None:
        """The caller's permit that was acquired last."""
        forks.notice()
        held = self._held()
        grant = of_caller(list(held))
        return None if grant is None else held[grant]

    def _held(self) -> dict[Grant, Permit]:
        """The permits that this process holds through this object, in the order in which they were granted."""
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


def _rebuild(
    path: str,
    n: int,
    timeout: float | None,
    purpose: str,
    mode: int,
    allow_network: bool = False,
    strict: bool | None = None,
) -> Semaphore:
    return Semaphore(path, n, timeout=timeout, purpose=purpose, mode=mode, allow_network=allow_network, strict=strict)
