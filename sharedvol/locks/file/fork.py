"""Every descriptor of locks that this process has open, so that a forked child can close its copies.

A lock belongs to the open file description, which a fork shares. The child must not unlock (that would
drop its parent's lock) and must not keep its copy (the lock would outlive a parent that is killed): it
closes all of them before any other code runs. See fork(2), flock(2).
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from types import ModuleType
from typing import TypeVar

from sharedvol import forks, native

_Handle = TypeVar("_Handle")

_open: dict[object, tuple[ModuleType, object]] = {}  # with what the handle is of
_overtaken: dict[object, int] = {}  # how many of ours had that number before, and were closed by other code
# Held over a fork, so that none happens between the opening of a descriptor and its entry here. Re-entrant:
# a garbage collection inside may close another lock's descriptor.
_guard = native.mutex()


def open_tracked(system: ModuleType, path: str, mode: int) -> object:
    """``system.open_lock_file``, remembered."""
    return track(system, lambda: system.open_lock_file(path, mode))


def track(system: ModuleType, open_it: Callable[[], _Handle]) -> _Handle:
    """What ``open_it`` gives, remembered, to be closed by ``system.close``."""
    forks.notice()
    with _guard:
        handle = open_it()
        if handle in _open:
            _overtaken[handle] = _overtaken.get(handle, 0) + 1
        _open[handle] = system, _file_of(handle)
        return handle


def close_tracked(system: ModuleType, handle: object) -> None:
    """``system.close``, forgotten. Does nothing for a handle that was closed before, as by a fork."""
    forks.notice()
    if sys.is_finalizing():
        return  # a daemon thread may have been stopped for good with the mutex; the kernel closes everything
    with _guard:
        if _open.pop(handle, None) is not None:
            system.close(handle)


def untrack(handle: object) -> None:
    """It was closed by other code, to which its number may belong by now: it is not ours to close."""
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
    for handle, (system, file) in _open.items():
        with contextlib.suppress(OSError):
            # A child that Python did not see begin may have closed everything, and opened something else since.
            if _file_of(handle) == file:
                system.close(handle)
    _open.clear()
    _overtaken.clear()


def _before_fork() -> None:
    forks.notice()  # in a child of a fork that Python did not see, another thread of its parent may have the guard
    _guard.acquire()


forks.around(_before_fork, lambda: _guard.release())
