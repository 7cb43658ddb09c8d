"""Files next to a lock file that stay open between uses, and are valid only as long as their paths name them.

To check two paths at every use would cost as much as the lock itself. On a kernel with "multigrain timestamps" (see its
documentation), each check also makes the next write slower. So only the change time of the directory is checked, which
tells whether any name in it has changed since the last check of both paths. No process can set it, see inode(7).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Final

from sharedvol import forks
from sharedvol.locks.file import linux
from sharedvol.locks.file.fork import close_tracked, track, untrack

TICK: Final = 100_000_000
"""Nanoseconds within which two changes may get one change time: more than a tick of any kernel's clock."""
_COARSE_TICK: Final = 3_000_000_000
"""As `TICK`, where the file system keeps whole seconds."""


class PinnedFile:
    """A file that stays open as long as its path names it.

    Args:
        path: of the file.
        open_file: opens it.
    """

    def __init__(self, path: str, open_file: Callable[[], int]) -> None:
        self.path, self._open_file = path, open_file
        self.fd: int | None = None
        self._identity: object = None
        forks.track(self)

    def renew(self) -> None:
        """Forget the descriptor in a forked child, where `fork` has closed it."""
        self.fd = None

    def look(self) -> int:
        """Return a descriptor of the file that the path names now.

        Raises:
            OSError: as ``open_file``.
        """
        forks.notice()
        if self.fd is None or not self.is_ours() or not self.is_named():
            self.close()
            fd = track(linux, self._open_file)
            self._identity = linux.identify(fd, self.path)
            self.fd = fd
        return self.fd

    def is_ours(self) -> bool:
        """Return whether the descriptor is still that of the opened file. Other code may have closed it."""
        try:
            return self.fd is not None and linux.identify(self.fd, self.path) == self._identity
        except OSError:
            return False

    def close(self) -> None:
        """Close the descriptor, unless other code did: its number may be another file's by now."""
        forks.notice()
        fd = self.fd
        if fd is not None:
            if self.is_ours():
                close_tracked(linux, fd)
            else:
                untrack(fd)
            self.fd = None

    def is_named(self) -> bool:
        """Return whether the path still names the file that was opened."""
        return linux.is_current(self.path, self._identity)


class PinnedDirectory(PinnedFile):
    """The directory of a lock file. It detects whether names in it may have changed."""

    def __init__(self, path: str) -> None:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        super().__init__(path, lambda: os.open(path, flags))
        # Its change time, and when this was first seen, by the monotonic clock.
        self._changed = self._seen = 0
        self._calm = False
        self.is_due = False
        """Whether `looked` will make it calm."""

    def is_calm(self) -> bool:
        """Return whether certainly no name in it has changed since `looked`. If not, check the names now.

        A name may change again within the same tick of the file system's clock, which leaves the change time the same.
        So the change time is reliable only if the names were checked a tick after it was first seen.
        """
        try:
            changed = os.fstat(self.look() if self.fd is None else self.fd).st_ctime_ns
        except OSError:  # deleted, or not readable for this user
            self._calm = self.is_due = False
            return False
        if changed != self._changed:
            self._calm = self.is_due = False
            self._changed, self._seen = changed, time.monotonic_ns()
        elif not self._calm:
            tick = TICK if changed % 1_000_000_000 else _COARSE_TICK
            self.is_due = time.monotonic_ns() - self._seen > tick and self.is_named()
        return self._calm

    def renew(self) -> None:
        """Forget everything in a forked child."""
        self._calm = self.is_due = False
        self._changed = 0
        super().renew()

    def looked(self) -> None:
        """Record that all names were checked since `is_calm` returned False."""
        self._calm = self.is_due

    def close(self) -> None:
        """Close the descriptor and forget the change time."""
        self._calm = self.is_due = False
        self._changed = 0
        super().close()

    def is_named(self) -> bool:
        """Return whether the path still names this directory, also through a symbolic link."""
        try:
            info = os.stat(self.path)
        except OSError:
            info = None
        if info is None or (info.st_dev, info.st_ino) != self._identity or not self.is_ours():
            self.close()  # the next look opens what is there now
            return False
        return True
