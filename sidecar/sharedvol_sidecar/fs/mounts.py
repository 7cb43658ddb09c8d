"""Check that the spool and the destination are still the same directories.

A volume that is unmounted while it is in use (``umount --lazy``, or a mount that an engine replaces) continues to work
for processes that have it open. Files would go where no other process finds them. And without the volume, its mount
point is another directory, whose files become hidden when the volume is mounted again.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from sharedvol.errors import describe
from sharedvol.mounts import read_mounts
from sharedvol_sidecar.errors import FULL, DestinationError, SidecarError, SpoolError
from sharedvol_sidecar.fs.directory import Directory
from sharedvol_sidecar.fs.private import open_private


class MountGuard:
    """Checks the paths of spool and destination.

    Args:
        spool: its absolute path without links.
        collected: the destination's absolute path without links.
    """

    def __init__(self, spool: str, collected: str) -> None:
        self._errors: dict[str, type[SidecarError]] = {spool: SpoolError, collected: DestinationError}
        self._points: dict[str, str] = {}
        self._seen: dict[str, tuple[int, int]] = {}

    def remember(self) -> None:
        """Remember which directories the paths are now. Call it before they are opened.

        Raises:
            SpoolError, DestinationError: a directory is missing, or is no longer mounted.
        """
        for path in self._errors:
            seen, point = self._inode(path), mount_point(path)
            before = self._points.get(path, "")
            if len(before) > len(point):
                raise self._errors[path](
                    f"{path!r} is no longer mounted (it was at {before!r}): mount it again, or restart the sidecar "
                    "if files are to go below the mount point"
                )
            self._points[path], self._seen[path] = point, seen

    def check(self) -> None:
        """Check that the paths are the directories that `remember` saw.

        Raises:
            SpoolError, DestinationError: a path is another directory now, or does not exist.
        """
        for path, seen in self._seen.items():
            if self._inode(path) != seen:
                raise self._errors[path](f"{path!r} is another directory than before: it was unmounted, or replaced")

    def _inode(self, path: str) -> tuple[int, int]:
        try:
            info = os.stat(path)
        except OSError as error:
            raise self._errors[path](f"cannot find {path!r}: {describe(error)}; check that it is mounted") from error
        return info.st_dev, info.st_ino


def mount_point(path: str) -> str:
    """Return the mount point of an absolute path without links: the fifth field of proc_pid_mountinfo(5)."""
    points = (mount.point for mount in read_mounts())
    above = (point for point in points if path == point or path.startswith(point.rstrip("/") + "/"))
    return max(above, key=len, default="/")


def shares_file_system(spool: Directory, destination: Directory, mark: str) -> bool:
    """Test with a file whether link(2) works from the spool into the destination. The file is removed again.

    Equal device numbers do not show that, because link(2) refuses to cross two bind mounts of one file system.

    Args:
        spool: its root.
        destination: its root.
        mark: a part of the file's name that no other process uses. A killed process may have left its file.

    Raises:
        OSError: one of the two cannot be written.
    """
    name = f"probe-{mark}"
    ours, theirs = open_private(spool), open_private(destination)
    for directory, left in ((ours, name), (theirs, name), (theirs, f"{name}-w")):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(left, dir_fd=directory.fd)
    source = name
    try:
        os.close(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=ours.fd))
    except OSError as error:
        if error.errno not in FULL:
            raise
        source = "id"  # a spool without inodes: use a file of ours that exists
    # Also check that the destination can be written, even if it is the same file system.
    os.close(os.open(f"{name}-w", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=theirs.fd))
    os.unlink(f"{name}-w", dir_fd=theirs.fd)
    try:
        os.link(source, name, src_dir_fd=ours.fd, dst_dir_fd=theirs.fd, follow_symlinks=False)
    except OSError:
        return False
    else:
        os.unlink(name, dir_fd=theirs.fd)
        return True
    finally:
        if source == name:
            os.unlink(name, dir_fd=ours.fd)


def overlap(spool: Path, destination: Path) -> bool:
    """Return whether one directory contains the other or both are the same, whatever their paths are."""
    return _within(spool, destination) or _within(destination, spool)


def _within(inner: Path, outer: Path) -> bool:
    wanted = os.stat(outer)
    return any(os.path.samestat(os.stat(above), wanted) for above in (inner.resolve(), *inner.resolve().parents))
