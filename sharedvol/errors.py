"""The errors of sharedvol: one small hierarchy, each telling what happened, to what, and what to do."""

from __future__ import annotations

import errno as _errno
from typing import Any

import filelock


class SharedVolError(Exception):
    """The base of every error that sharedvol raises on purpose."""


class IdentityError(SharedVolError):
    """Nothing names this container, so no path made here would be unique."""


class InvalidNameError(SharedVolError, ValueError):
    """A file name that cannot be built, or that no builder of ours made."""


class AlreadyPublishedError(SharedVolError, FileExistsError):
    """The final name is taken; the file there was left as it is.

    ``errno`` is EEXIST, ``filename`` the final name.
    """

    def __init__(self, errno: int, message: str, filename: str) -> None:
        super().__init__(errno, message, filename)

    def __str__(self) -> str:
        return str(self.strerror)


class PublishError(SharedVolError, OSError):
    """The directory cannot take a published file (no hard links, read-only, missing).

    ``errno`` and ``filename`` are those of the failed system call.
    """

    def __init__(self, errno: int, message: str, filename: str) -> None:
        super().__init__(errno, message, filename)

    def __str__(self) -> str:
        return str(self.strerror)


class LockError(SharedVolError):
    """The base of what a lock can raise."""


class LockTimeout(LockError, filelock.Timeout):
    """The lock was not free in time. Also a ``filelock.Timeout`` and a ``TimeoutError``.

    Attributes:
        lock_file: the path of the lock file.
        waited: the time that was allowed, in seconds.
    """

    def __init__(self, lock_file: str, waited: float = 0.0) -> None:
        filelock.Timeout.__init__(self, lock_file)
        self.waited = waited

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.lock_file, self.waited)  # filelock's own forgets ``waited``

    def __str__(self) -> str:
        tried = f"gave up after {self.waited:g} s" if self.waited else "not waiting"
        return (
            f"lock {self.lock_file!r} is held by another process, thread or task: {tried}; "
            "allow a longer timeout, or look for a holder that hangs"
        )


class LockFileError(LockError, OSError):
    """The lock file cannot be opened or locked where it is.

    ``errno`` and ``filename`` are those of the failed system call.
    """

    def __init__(self, errno: int, message: str, filename: str) -> None:
        super().__init__(errno, message, filename)

    def __str__(self) -> str:
        return str(self.strerror)


class LockDeadlockError(LockError):
    """Waiting would never end: this thread holds the same file through another lock object."""


class NotLockedError(LockError, RuntimeError):
    """A release by a thread or task that does not hold the lock."""


def describe(error: OSError) -> str:
    """``error`` in words with its symbolic name: ``read-only file system (EROFS)``."""
    if error.errno is None:
        return str(error)
    name = _errno.errorcode.get(error.errno, str(error.errno))
    words = error.strerror or "unknown error"
    return f"{words[:1].lower()}{words[1:]} ({name})"
