"""Locks that replicas share."""

from sharedvol.errors import LockDeadlockError, LockError, LockFileError, LockTimeout, NotLockedError
from sharedvol.locks.file import FileLock

__all__ = ["FileLock", "LockDeadlockError", "LockError", "LockFileError", "LockTimeout", "NotLockedError"]
