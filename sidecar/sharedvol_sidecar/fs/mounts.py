"""Whether the spool and the destination are still the directories that they were.

A volume that is unmounted while it is in use (``umount --lazy``, or a mount that an engine replaces) lives on for
whoever has it open: files would go where nobody finds them. And below an empty mount point lies another directory,
which takes files until the volume hides them again.
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
    """Looks at the paths of the two.

    Args:
        spool: an absolute path without links.
        collected: likewise.
    """

    def __init__(self, spool: str, collected: str) -> None:
        self._errors: dict[str, type[SidecarError]] = {spool: SpoolError, collected: DestinationError}
        self._points: dict[str, str] = {}
        self._seen: dict[str, tuple[int, int]] = {}

    def remember(self) -> None:
        """Before they are opened: remember what is there, if it is what was there before.

        Raises:
            SpoolError, DestinationError: it is missing, or not mounted any more.
        """
        for path in self._errors:
            seen, point = self._inode(path), mount_point(path)
            before = self._points.get(path, "")
            if len(before) > len(point):
                raise self._errors[path](
                    f"{path!r} is not mounted any more (it was at {before!r}): mount it again, or restart the sidecar "
                    "if files are to go below the mount point"
                )
            self._points[path], self._seen[path] = point, seen

    def check(self) -> None:
        """Whether they are what `remember` saw.

        Raises:
            SpoolError, DestinationError: another directory has the path by now, or none has.
        """
        for path, seen in self._seen.items():
            if self._inode(path) != seen:
                raise self._errors[path](f"{path!r} is another directory than before: it was unmounted, or replaced")

    def _inode(self, path: str) -> tuple[int, int]:
        try:
            info = os.stat(path)
        except OSError as error:
            raise self._errors[path](f"cannot find {path!r}: {describe(error)}; see that it is mounted") from error
        return info.st_dev, info.st_ino


def mount_point(path: str) -> str:
    """Where the file system of an absolute path without links is mounted: the fifth field of proc_pid_mountinfo(5)."""
    points = (mount.point for mount in read_mounts())
    above = (point for point in points if path == point or path.startswith(point.rstrip("/") + "/"))
    return max(above, key=len, default="/")


def shares_file_system(spool: Directory, destination: Directory, mark: str) -> bool:
    """Whether a file can be linked from one into the other: tried, with a file that is removed again.

    Equal device numbers don't tell: two bind mounts of one file system are two mounts, and link(2)
    refuses to cross them.

    Args:
        spool: its root.
        destination: its root.
        mark: told apart from what others try at the same time; one that was killed may have left its file.

    Raises:
        OSError: one of the two cannot be written.
    """
    name = f"probe-{mark}"
    ours, theirs = open_private(spool), open_private(destination)
    for place, left in ((ours, name), (theirs, name), (theirs, f"{name}-w")):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(left, dir_fd=place.fd)
    source = name
    try:
        os.close(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=ours.fd))
    except OSError as error:
        if error.errno not in FULL:
            raise
        source = "id"  # a spool without inodes: a file of ours that is there already
    # In the destination too, though it may be the same file system: that it can be written is asked as well.
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
    """Whether one lies in the other, or they are one directory, by whatever paths they were named."""
    return _within(spool, destination) or _within(destination, spool)


def _within(inner: Path, outer: Path) -> bool:
    wanted = os.stat(outer)
    return any(os.path.samestat(os.stat(above), wanted) for above in (inner.resolve(), *inner.resolve().parents))
