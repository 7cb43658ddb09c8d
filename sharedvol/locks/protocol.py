"""The interface of locks on files, MySQL servers and Redis servers."""

from __future__ import annotations

from types import TracebackType
from typing import Protocol, Self

from sharedvol.locks.held import AcquiredLock
from sharedvol.locks.holder import Holder


class Lock(Protocol):
    """An exclusive lock between replicas, on any engine. Made by `sharedvol.open_lock`.

    If a lock is lost before its release, `check`, `release` and the end of a ``with`` raise `sharedvol.LockLostError`,
    on every engine.
    """

    @property
    def held(self) -> bool:
        """Whether the caller acquired the lock and has not released it. Call `check` to find out if it was lost."""

    @property
    def token(self) -> int:
        """The fencing token of this hold: greater than that of every earlier hold of the same lock.

        Raises:
            LockError: the lock was not made with ``fenced=True``.
            NotLockedError: the caller does not hold it.
        """

    def acquire(self, timeout: float | None = ...) -> AcquiredLock[Self]:
        """Take the lock.

        The returned object releases the lock from any thread: use ``with`` on it, or call its ``release``.

        Args:
            timeout: seconds to wait. None waits indefinitely, 0 does not wait. The default is the lock's own.

        Raises:
            LockTimeout: the lock was not free in time.
            LockError: the lock cannot be taken.
        """

    def release(self) -> None:
        """Undo one `acquire` of the calling thread. The last one releases the lock.

        Raises:
            NotLockedError: the caller does not hold the lock.
            LockLostError: the lock was lost before.
        """

    def check(self) -> None:
        """Check that the lock was not lost.

        Raises:
            LockLostError: the lock was lost.
            NotLockedError: the lock was never acquired, or was released.
        """

    def holder(self) -> Holder | None:
        """Return the current holder, which may be the caller. None if the lock is free."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
