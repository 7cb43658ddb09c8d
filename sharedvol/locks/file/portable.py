"""Where the kernel has no open file description locks (macOS, Windows): filelock's native lock.

The same functions as `sharedvol.locks.file.linux`, so that the file lock can use either. It excludes the
users of filelock only, polls, and knows no shared locks: enough to develop on such a machine, not to
run replicas, which run on Linux.
"""

from __future__ import annotations

import errno

import filelock

from sharedvol.errors import LockFileError, describe

Handle = filelock.BaseFileLock


def open_lock_file(path: str, mode: int) -> Handle:
    """A native lock on ``path``, not yet opened."""
    return filelock.FileLock(path, mode=mode, thread_local=False)


def close(handle: Handle) -> None:
    """Give up the handle, and the lock if it is held."""
    handle.release(force=True)


def identify(handle: Handle, path: str) -> object:
    """What tells this lock file from others."""
    return path


def mark(handle: Handle) -> int:
    """An object of our own needs none."""
    return -1


def is_of(handle: Handle, identity: object, marked: int) -> bool:
    """The handle is an object of our own."""
    return True


def is_current(path: str, identity: object) -> bool:
    """filelock looks after a replaced file itself."""
    return True


def why_lost(handle: Handle | None, path: str, identity: object) -> str | None:
    """How the lock was lost, as far as filelock knows."""
    return None if handle is not None and handle.is_locked else "its descriptor was closed"


def try_both(handle: Handle, path: str, shared: bool) -> bool:
    """Take the lock if it is free; never waits."""
    if shared:
        raise LockFileError(
            errno.EOPNOTSUPP,
            f"cannot lock {path!r} shared: this kernel has no open file description locks; use Linux, or shared=False",
            path,
        )
    return _acquire(handle, path, 0)


def wait_first(handle: Handle, path: str, shared: bool) -> None:
    """There is no first family here."""


def wait_second(handle: Handle, path: str, shared: bool) -> None:
    """Wait for the lock, by polling."""
    _acquire(handle, path, -1)


def unlock_first(handle: Handle) -> None:
    """There is no first family here."""


def unlock(handle: Handle) -> None:
    """Drop the lock."""
    handle.release()


def _acquire(handle: Handle, path: str, timeout: float) -> bool:
    try:
        handle.acquire(timeout=timeout)
    except filelock.Timeout:
        return False
    except OSError as error:
        raise LockFileError(error.errno or errno.EIO, f"cannot lock {path!r}: {describe(error)}", path) from error
    return True
