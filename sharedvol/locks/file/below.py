"""A file lock whose file is reached by a descriptor of its directory.

Where other users may write the directories above a lock file, they can put another directory into its path at any
moment. The caller therefore says how to open the lock's directory, and each use of the file's name is relative to that.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, cast

from sharedvol.errors import SharedVolError
from sharedvol.locks.backend import LockBackend
from sharedvol.locks.file import FileLock, linux

OpenDirectory = Callable[[], AbstractContextManager[int]]
"""Opens the directory of a lock file, and closes it again."""


class LockBelow(FileLock):
    """A `FileLock` below a descriptor.

    Args:
        path: the lock file, as it is named to people. Only its last part is looked up.
        open_directory: opens the directory that has it.
        timeout, allow_network: as for `FileLock`.
    """

    def __init__(
        self, path: str, open_directory: OpenDirectory, *, timeout: float | None, allow_network: bool = False
    ) -> None:
        super().__init__(path, timeout=timeout, allow_network=allow_network)
        self._backend = cast(LockBackend, _Below(open_directory))


class _Below:
    """The functions of `linux`, which look up only the last part of a path, below a descriptor."""

    def __init__(self, open_directory: OpenDirectory) -> None:
        self._open_directory = open_directory

    def open_lock_file(self, path: str, mode: int) -> int:
        with self._open_directory() as directory:
            return linux.open_lock_file(path, mode, directory)

    def is_current(self, path: str, identity: object) -> bool:
        try:
            with self._open_directory() as directory:
                return linux.is_current(path, identity, directory)
        except SharedVolError:
            return False

    def why_lost(self, fd: int | None, path: str, identity: object) -> str | None:
        lost = linux.why_closed(fd, path, identity)
        return lost or (None if self.is_current(path, identity) else linux.REPLACED)

    def __getattr__(self, name: str) -> Any:
        return getattr(linux, name)
