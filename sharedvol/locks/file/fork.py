"""The descriptors of locks that this process has open, so that a forked child can close its copies.

A lock belongs to the open file description, which a fork shares. The child must not unlock (that would
drop its parent's lock) and must not keep its copy (the lock would outlive a parent that is killed): it
closes all of them before any other code runs. See fork(2), flock(2).
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from typing import TypeVar

from sharedvol import forks, native
from sharedvol.locks.backend import Closer, Handle, LockBackend

_Handle = TypeVar("_Handle")

_open: dict[object, tuple[Closer, object]] = {}  # by handle: what closes it, and its file
_overtaken: dict[object, int] = {}  # by handle: how many of ours had its number before and were closed by other code
# Held over a fork, so that none happens between the opening of a descriptor and its entry here. Re-entrant:
# a garbage collection inside may close another lock's descriptor.
_guard = native.mutex()


def open_tracked(backend: LockBackend, path: str, mode: int) -> Handle:
    """Open a lock file, and track its handle."""
    return track(backend, lambda: backend.open_lock_file(path, mode))


def track(closer: Closer, open_it: Callable[[], _Handle]) -> _Handle:
    """Open a handle by ``open_it``. `close_tracked` and a forked child close it by ``closer``."""
    forks.notice()
    with _guard:
        handle = open_it()
        if handle in _open:
            _overtaken[handle] = _overtaken.get(handle, 0) + 1
        _open[handle] = closer, _file_of(handle)
        return handle


def close_tracked(closer: Closer, handle: Handle) -> None:
    """Close a handle. Does nothing if it was closed before, as in a forked child."""
    forks.notice()
    if sys.is_finalizing():
        return  # a daemon thread may have been stopped for good with the mutex; the kernel closes everything
    with _guard:
        if _open.pop(handle, None) is not None:
            closer.close(handle)


def untrack(handle: Handle) -> None:
    """Forget a handle that other code closed. Its number may be another file's by now, so it is not closed."""
    forks.notice()
    with _guard:
        before = _overtaken.pop(handle, 0)
        if before > 1:
            _overtaken[handle] = before - 1
        elif not before:
            _open.pop(handle, None)


def _file_of(handle: object) -> object:
    if not isinstance(handle, int):
        return None
    info = os.fstat(handle)
    return info.st_dev, info.st_ino


@forks.in_child
def _renew() -> None:
    global _guard
    _guard = native.mutex()
    for handle, (closer, file) in _open.items():
        with contextlib.suppress(OSError):
            # A child that Python did not see begin may have closed everything, and opened something else since.
            if _file_of(handle) == file:
                closer.close(handle)
    _open.clear()
    _overtaken.clear()


def _before_fork() -> None:
    forks.notice()  # in a child of a fork that Python did not see, another thread of its parent may have the guard
    _guard.acquire()


forks.around(_before_fork, lambda: _guard.release())
