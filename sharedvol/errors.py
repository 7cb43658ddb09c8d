"""The errors of sharedvol: one small hierarchy, each telling what happened, to what, and what to do."""

from __future__ import annotations

import copyreg
import errno as _errno
from typing import Any

import filelock

_OWN = ("args", "errno", "strerror", "filename", "filename2")


def reduce_error(error: BaseException) -> tuple[Any, ...]:
    """Reduce an error for `pickle` and `copy`, so that the copy has its attributes and notes.

    Python itself calls the class with ``args``, which fails where ``__init__`` has other parameters, and
    ``filelock.Timeout`` leaves attributes out. Here the copy is made without ``__init__``.
    """
    # Those of an `OSError` are not in its dictionary. None is left out: it would change what `str` says.
    own = {name: value for name in _OWN if (value := getattr(error, name, None)) is not None}
    return copyreg.__newobj__, (type(error),), {**vars(error), **own}  # type: ignore[attr-defined] # not in typeshed


class SharedVolError(Exception):
    """The base of every error that sharedvol raises on purpose."""

    def __reduce__(self) -> tuple[Any, ...]:
        return reduce_error(self)


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
        lock_file: the path of the lock file, or the name of the lock on its server.
        waited: the time that was allowed, in seconds.
        holder: who has it, where that is known: a `sharedvol.locks.Holder` or one of its kinds.
    """

    def __init__(self, lock_file: str, waited: float = 0.0, holder: object = None) -> None:
        filelock.Timeout.__init__(self, lock_file)
        self.waited = waited
        self.holder = holder

    def __str__(self) -> str:
        who = self.holder or "another process, thread or task"
        if self.waited:
            what = f"gave up after {self.waited:g} s; allow a longer timeout, or look for a holder that hangs"
        else:
            what = "not waiting; try again later, or give a timeout"
        return f"lock {self.lock_file!r} is held by {who}: {what}"


class LockFileError(LockError, OSError):
    """The lock file cannot be opened or locked where it is.

    ``errno`` and ``filename`` are those of the failed system call.
    """

    def __init__(self, errno: int, message: str, filename: str) -> None:
        super().__init__(errno, message, filename)

    def __str__(self) -> str:
        return str(self.strerror)


class NetworkFileSystemError(LockFileError):
    """A lock, volume or cache is on a network file system, and ``strict`` or ``SHAREDVOL_STRICT`` refuses those."""


class NetworkFileSystemWarning(UserWarning):
    """A lock, volume or cache is on a network file system, where two replicas may hold one lock at once."""


class LockDeadlockError(LockError):
    """Waiting would never end: the holder waits for the caller, or is the caller itself."""


class NotLockedError(LockError, RuntimeError):
    """A release by a thread or task that does not hold the lock."""


class LockLostError(LockError):
    """A lock ended before it was released: its connection or descriptor is gone, or something else freed it.

    Another process may have it by now. What was done under it since the last check is in doubt.
    """


class LockUnsafeError(LockError):
    """The server has the lock but would not keep others out: a cluster, or a pooler in between."""


class PresenceError(SharedVolError):
    """Who is alive cannot be found out or recorded on this volume."""


class DuplicateReplicaError(PresenceError):
    """A live replica of another container has the name.

    Attributes:
        name: the name.
        holder: the `sharedvol.Replica` that has it, as far as its information can be read.
    """

    def __init__(self, message: str, name: str, holder: object = None) -> None:
        super().__init__(message)
        self.name, self.holder = name, holder


class NotJoinedError(PresenceError, RuntimeError):
    """This process has not joined the volume, or has left it."""


class ReplicaAliveError(PresenceError):
    """What may only be done to a dead replica was asked for a live one."""


class CacheError(SharedVolError):
    """The cache directory cannot be used as it is, or is not one."""


class CacheTimeout(CacheError, TimeoutError):
    """Another process, thread or task computed the entry and was not ready in time. Also a ``TimeoutError``.

    Attributes:
        key: the entry's key.
        waited: the time that was allowed, in seconds.
    """

    def __init__(self, message: str, key: object = None, waited: float = 0.0) -> None:
        super().__init__(message)
        self.key, self.waited = key, waited


class CacheValueError(CacheError, ValueError):
    """A computed value that the cache's codec cannot put into bytes."""


class DatabaseError(SharedVolError):
    """The database refused, or cannot be reached.

    Attributes:
        code: the server's or driver's error number, where it gave one.
        lost: the connection is gone, so that what was sent last may or may not have been done.
    """

    def __init__(self, message: str, code: int | None = None, *, lost: bool = False) -> None:
        super().__init__(message)
        self.code = code
        self.lost = lost


class MigrationError(SharedVolError):
    """The base of what the migrations can raise."""


class ScriptError(MigrationError, ValueError):
    """An SQL script that cannot be taken apart into statements.

    Attributes:
        what: what is wrong.
        line: where, counted from 1.
    """

    def __init__(self, what: str, line: int) -> None:
        super().__init__(f"line {line}: {what}")
        self.what, self.line = what, line


class ManifestError(MigrationError):
    """The migrations that came with this image are not those that it expects, or cannot be read."""


class LedgerError(MigrationError):
    """The table of applied migrations cannot be read or written, or contradicts the directory."""


class HalfAppliedError(MigrationError):
    """A migration began earlier and did not end, and cannot be gone on with by itself."""


class DriftError(MigrationError):
    """A migration that was applied has been changed since."""


class AheadError(MigrationError):
    """The database has migrations that this image does not know."""


def describe(error: OSError) -> str:
    """``error`` in words with its symbolic name: ``read-only file system (EROFS)``."""
    if error.errno is None:
        return str(error)
    name = _errno.errorcode.get(error.errno, str(error.errno))
    words = error.strerror or "unknown error"
    return f"{words[:1].lower()}{words[1:]} ({name})"
