"""Locks that replicas share."""

from sharedvol.errors import LockDeadlockError, LockError, LockFileError, LockLostError, LockTimeout, NotLockedError
from sharedvol.locks.factory import open_lock
from sharedvol.locks.file import FileLock
from sharedvol.locks.file.holder_file import FileHolder
from sharedvol.locks.file.semaphore import Semaphore
from sharedvol.locks.held import AcquiredLock
from sharedvol.locks.holder import Holder
from sharedvol.locks.protocol import Lock
from sharedvol.locks.watch import Watch, watch

__all__ = [
    "AcquiredLock",
    "FileHolder",
    "FileLock",
    "Holder",
    "Lock",
    "LockDeadlockError",
    "LockError",
    "LockFileError",
    "LockLostError",
    "LockTimeout",
    "NotLockedError",
    "Semaphore",
    "Watch",
    "open_lock",
    "watch",
]
