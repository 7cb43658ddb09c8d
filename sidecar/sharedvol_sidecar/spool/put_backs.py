"""Marks of the files that a sidecar put back into the spool.

Putting a file back is a rename, and its event looks like a writer's. Without the mark, any sidecar that watches the
directory would take the rename for the writer's word and collect a file that is still being written. The mark is an
empty directory in the spool, so that all sidecars of the spool see it::

    .sharedvol/put-back/<inode in hexadecimal>

The mark's time of change is a reading of the clock that counts from the machine's start (CLOCK_BOOTTIME), which no
process can set. So a change of the time of day does not make a fresh mark old. A mark that is too old, or of an inode
that was reused, does no harm: its file waits for the quiet time.
"""

from __future__ import annotations

import contextlib
import os
import time

from sharedvol_sidecar.errors import FULL
from sharedvol_sidecar.fs.directory import Directory

OLD = 86_400.0
"""Seconds after which a mark is removed. Every running sidecar has read the event long before."""

_MANY = 4_096  # marks that are added before old ones are removed again
_MOST = 65_536  # marks that are kept in memory while the disk is full


class PutBacks:
    """The marks of one spool.

    Args:
        private: the sidecar's own directory in the spool. It stays open as long as the marks are used.

    Raises:
        OSError: the directory of the marks cannot be made.
    """

    def __init__(self, private: Directory) -> None:
        self._private = private
        self._directory: Directory | None = None
        self._unwritten: dict[int, None] = {}
        self._added = 0
        self._open()
        self.remove_old()

    def _open(self) -> Directory | None:
        """Open the directory of the marks. Return None as long as a full disk does not take it."""
        if self._directory is None:
            try:
                self._directory = self._private.make("put-back", 0o700)[0]
            except OSError as error:
                if error.errno not in FULL:
                    raise
        return self._directory

    def close(self) -> None:
        """Close the directory of the marks. Does nothing the second time."""
        if self._directory is not None:
            self._directory.close()

    def add(self, inode: int) -> None:
        """Mark a file, before it is put back. On a full disk only this process remembers it."""
        self._added += 1
        if self._added >= _MANY:
            self.remove_old()
        directory = self._open()
        if directory is None:
            self._remember(inode)
            return
        try:
            with contextlib.suppress(FileExistsError):  # the earlier mark of the inode counts from now
                os.mkdir(f"{inode:x}", 0o700, dir_fd=directory.fd)
        except OSError:
            self._remember(inode)
            return
        now = _clock()
        with contextlib.suppress(OSError):  # a mark that keeps its first time is not removed
            os.utime(f"{inode:x}", (now, now), dir_fd=directory.fd, follow_symlinks=False)

    def _remember(self, inode: int) -> None:
        self._unwritten[inode] = None
        if len(self._unwritten) > _MOST:
            del self._unwritten[next(iter(self._unwritten))]

    def __contains__(self, inode: int) -> bool:
        """Return whether a sidecar put back the file with this inode."""
        directory = self._open()
        return inode in self._unwritten or (directory is not None and directory.inode(f"{inode:x}") is not None)

    def remove_old(self) -> None:
        """Remove the marks that no sidecar needs any more."""
        self._added = 0
        if self._directory is None:
            return
        oldest = _clock() - OLD
        with os.scandir(self._directory.fd) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    if entry.stat(follow_symlinks=False).st_mtime < oldest:
                        os.rmdir(entry.name, dir_fd=self._directory.fd)


def _clock() -> float:
    """Seconds since the machine was started, which a container cannot change."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
