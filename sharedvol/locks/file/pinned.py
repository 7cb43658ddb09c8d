"""Files beside a lock file that stay open between uses, and count only as long as their paths name them.

To look at two paths at every use would cost as much as the lock itself; and where the kernel has fine time stamps
for whoever looks, each look makes the next write dearer ("multigrain timestamps" in the kernel's documentation).
So the directory is asked whether any name in it has changed since both were looked at: by its change time, which
nobody can set, see inode(7).
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
        """Have nothing open: in a forked child, where `fork` has closed the descriptor."""
        self.fd = None

    def look(self) -> int:
        """The descriptor of what the path names now.

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
        """Whether the descriptor is still that of the file that was opened: other code may have closed it."""
        try:
            return self.fd is not None and linux.identify(self.fd, self.path) == self._identity
        except OSError:
            return False

    def close(self) -> None:
        """Close it, unless other code did: its number may be another file's by now."""
        forks.notice()
        fd = self.fd
        if fd is not None:
            if self.is_ours():
                close_tracked(linux, fd)
            else:
                untrack(fd)
            self.fd = None

    def is_named(self) -> bool:
        """Whether the path still names the file that was opened."""
        return linux.is_current(self.path, self._identity)


class PinnedDirectory(PinnedFile):
    """The directory of a lock file, which tells whether names in it may have changed."""

    def __init__(self, path: str) -> None:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        super().__init__(path, lambda: os.open(path, flags))
        # Its change time, and when we first saw that one, by a clock that nobody can set.
        self._changed = self._seen = 0
        self._calm = False
        self.is_due = False
        """Whether `looked` will make it calm."""

    def is_calm(self) -> bool:
        """Whether it is certain that no name in it has changed since `looked`. If not, look at them now.

        Names that changed may change once more within the same tick of the file system's clock, unseen. So the
        names have to be looked at a tick after a change time was first seen, and only then it says something.
        """
        try:
            changed = os.fstat(self.look() if self.fd is None else self.fd).st_ctime_ns
        except OSError:  # gone, or not ours to read
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
        """Have nothing open, and know nothing."""
        self._calm = self.is_due = False
        self._changed = 0
        super().renew()

    def looked(self) -> None:
        """All names were looked at since `is_calm` said no."""
        self._calm = self.is_due

    def close(self) -> None:
        """Close it, and know nothing of it any more."""
        self._calm = self.is_due = False
        self._changed = 0
        super().close()

    def is_named(self) -> bool:
        """Whether it is still what the path names, which may be by way of a symbolic link."""
        try:
            info = os.stat(self.path)
        except OSError:
            info = None
        if info is None or (info.st_dev, info.st_ino) != self._identity or not self.is_ours():
            self.close()  # the next look opens what is there now
            return False
        return True
