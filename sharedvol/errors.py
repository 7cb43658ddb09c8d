"""The errors of sharedvol: one small hierarchy. Each message says what happened, to what, and what to do."""

from __future__ import annotations

import copyreg
import errno as _errno
import os as _os
from typing import Any

import filelock

_OWN = ("args", "errno", "strerror", "filename", "filename2")


def reduce_error(error: BaseException) -> tuple[Any, ...]:
    """Reduce an error for `pickle` and `copy`, so that the copy has its attributes and notes.

    Python calls the class with ``args``, which fails if ``__init__`` has other parameters, and ``filelock.Timeout``
    omits attributes. So the copy is made without ``__init__``.
    """
    # The attributes of an `OSError` are not in its dictionary. None is left out because it would change the message.
    own = {name: value for name in _OWN if (value := getattr(error, name, None)) is not None}
    return copyreg.__newobj__, (type(error),), {**vars(error), **own}  # type: ignore[attr-defined] # not in typeshed


class SharedVolError(Exception):
    """The base of every error that sharedvol raises on purpose."""

    def __reduce__(self) -> tuple[Any, ...]:
        return reduce_error(self)


class IdentityError(SharedVolError):
    """The container has no name of its own, so no path made here would be unique."""


class InvalidNameError(SharedVolError, ValueError):
    """A file name cannot be built, or is not in a form that sharedvol builds."""


class AlreadyPublishedError(SharedVolError, FileExistsError):
    """The final name is taken. The file with that name was not changed.

    ``errno`` is EEXIST and ``filename`` is the final name.
    """

    def __init__(self, errno: int, message: str, filename: str) -> None:
        super().__init__(errno, message, filename)

    def __str__(self) -> str:
        return str(self.strerror)


class PublishError(SharedVolError, OSError):
    """The directory cannot take a published file, for example because it is missing or read-only, or has no hard links.

    ``errno`` and ``filename`` are those of the failed system call.
    """

    def __init__(self, errno: int, message: str, filename: str) -> None:
        super().__init__(errno, message, filename)

    def __str__(self) -> str:
        return str(self.strerror)


class LockError(SharedVolError):
    """The base of the errors of locks."""


class LockTimeout(LockError, filelock.Timeout):
    """The lock was not free in time. This is also a ``filelock.Timeout`` and a ``TimeoutError``.

    Attributes:
        lock_file: the path of the lock file, or the name of the lock on its server.
        waited: the timeout, in seconds.
        holder: the holder, if it is known: a `sharedvol.locks.Holder` or a similar record of an engine.
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
            what = "not waiting; try again later, or set a timeout"
        return f"lock {self.lock_file!r} is held by {who}: {what}"


class LockFileError(LockError, OSError):
    """The lock file cannot be opened or locked.

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
    """Waiting would never end, because the holder waits for the caller or is the caller."""


class NotLockedError(LockError, RuntimeError):
    """A thread or task that does not hold the lock tried to release it."""


class LockLostError(LockError):
    """A lock was lost before it was released, for example because its connection or descriptor was closed.

    Another process may hold it by now. Do not trust what was done under it since the last check.
    """


class LockUnsafeError(LockError):
    """The server grants the lock but would not exclude other clients, because it is a cluster or behind a pooler."""


class PresenceError(SharedVolError):
    """The register of replicas on this volume cannot be read or written."""


class DuplicateReplicaError(PresenceError):
    """A live replica of another container has the same name.

    Attributes:
        name: the name.
        holder: the `sharedvol.Replica` that has it, as far as its record can be read.
    """

    def __init__(self, message: str, name: str, holder: object = None) -> None:
        super().__init__(message)
        self.name, self.holder = name, holder


class NotJoinedError(PresenceError, RuntimeError):
    """This process has not joined the volume, or has left it."""


class ReplicaAliveError(PresenceError):
    """The replica is alive, and only a dead one can be forgotten."""


class CacheError(SharedVolError):
    """The cache directory cannot be used, or is not a cache directory."""


class CacheTimeout(CacheError, TimeoutError):
    """Another process, thread or task did not finish computing the entry in time. This is also a ``TimeoutError``.

    Attributes:
        key: the entry's key.
        waited: the timeout, in seconds.
    """

    def __init__(self, message: str, key: object = None, waited: float = 0.0) -> None:
        super().__init__(message)
        self.key, self.waited = key, waited


class CacheValueError(CacheError, ValueError):
    """The cache's codec cannot encode a computed value."""


class DatabaseError(SharedVolError):
    """The database refused a statement or a connection, or cannot be reached.

    Attributes:
        code: the error number of the server or driver, if there is one.
        lost: whether the connection was lost. The last statement may or may not have been executed.
    """

    def __init__(self, message: str, code: int | None = None, *, lost: bool = False) -> None:
        super().__init__(message)
        self.code = code
        self.lost = lost


class MigrationError(SharedVolError):
    """The base of the errors of migrations."""


class ScriptError(MigrationError, ValueError):
    """An SQL script cannot be split into statements.

    Attributes:
        what: what is wrong.
        line: the line number, counted from 1.
    """

    def __init__(self, what: str, line: int) -> None:
        super().__init__(f"line {line}: {what}")
        self.what, self.line = what, line


class ManifestError(MigrationError):
    """The migrations in this image do not match their manifest, or cannot be read."""


class LedgerError(MigrationError):
    """The table of applied migrations cannot be read or written, or contradicts the migrations directory."""


class HalfAppliedError(MigrationError):
    """A migration was applied in part and cannot be resumed automatically."""


class DriftError(MigrationError):
    """A migration was changed after it had been applied."""


class AheadError(MigrationError):
    """The database has migrations that this image does not know."""


def describe(error: OSError) -> str:
    """Return an error in words with its symbolic name: ``read-only file system (EROFS)``."""
    if error.errno is None:
        return str(error)
    name = _errno.errorcode.get(error.errno, str(error.errno))
    words = error.strerror or "unknown error"
    return f"{words[:1].lower()}{words[1:]} ({name})"


_PERMIT = "give user {user} read and write access"
_REMEDIES = {
    "ENOENT": "create it, or mount the volume",
    "ENOTDIR": "a part of the path is not a directory, or is a symbolic link, which is never followed: remove it",
    "ELOOP": "it is a symbolic link, which is never followed: remove it",
    "EISDIR": "it is a directory: remove it, or name another path",
    "EROFS": "mount the volume read-write",
    "EACCES": _PERMIT,
    "EPERM": _PERMIT,
    "ENOSPC": "free some space",
    "EDQUOT": "free some space, or raise the quota",
    "EMFILE": "raise this process's limit of open files (ulimit -n)",
    "ENFILE": "raise the system's limit of open files (fs.file-max)",
    "EIO": "check the disk",
}


def remedy(error: OSError, default: str = "see the reason", **special: str) -> str:
    """Return what to do about an error of the operating system, as the end of a message.

    Args:
        error: the error.
        default: the text for an error without a known remedy.
        special: better texts, by symbolic name: ``ENOENT="create its directory"``. ``{user}`` is the user's number.
    """
    name = _errno.errorcode.get(error.errno or 0, "")
    return (special.get(name) or _REMEDIES.get(name, default)).replace("{user}", str(_os.geteuid()))
