"""What every engine's lock can do: a file's, a MySQL server's, a Redis server's."""

from __future__ import annotations

from types import TracebackType
from typing import Protocol, Self

from sharedvol.locks.held import AcquiredLock
from sharedvol.locks.holder import Holder


class Lock(Protocol):
    """An exclusive lock between replicas, whatever keeps it. Made by `sharedvol.open_lock`.

    A lock that is lost before its release is told in one way, on every engine: `check`, `release` and the end
    of a ``with`` raise `sharedvol.LockLostError`.
    """

    @property
    def held(self) -> bool:
        """Whether the caller acquired it and has not released it. Whether it was lost, `check` tells."""

    @property
    def token(self) -> int:
        """The fencing token of this hold: greater than that of every earlier hold of the same lock.

        Raises:
            LockError: the lock was not made with ``fenced=True``.
            NotLockedError: the caller does not hold it.
        """

    def acquire(self, timeout: float | None = ...) -> AcquiredLock[Self]:
        """Take the lock.

        What is returned releases it, from any thread: by a ``with`` on it or by its ``release``.

        Args:
            timeout: seconds to wait, None for ever, 0 not at all; else as the lock was made.

        Raises:
            LockTimeout: it was not free in time.
            LockError: it cannot be taken at all.
        """

    def release(self) -> None:
        """Undo one `acquire` of the calling thread; the last one frees the lock.

        Raises:
            NotLockedError: the caller does not hold it.
            LockLostError: it was lost before.
        """

    def check(self) -> None:
        """Ask whether the lock is still ours.

        Raises:
            LockLostError: it is not.
            NotLockedError: it was never acquired, or has been released.
        """

    def holder(self) -> Holder | None:
        """Who has the lock now, the caller included; None if nobody has."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
