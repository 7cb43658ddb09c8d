"""Whether the spool and the destination are still the directories that they were.

A volume that is unmounted while it is in use (``umount --lazy``, or a mount that an engine replaces) lives on for
whoever has it open: files would go where nobody finds them. And below an empty mount point lies another directory,
which takes files until the volume hides them again.
"""

from __future__ import annotations

import os

from sharedvol.errors import describe
from sharedvol.mounts import read_mounts
from sharedvol_sidecar.errors import DestinationError, SidecarError, SpoolError


class Places:
    """Looks at the paths of the two.

    Args:
        spool: an absolute path without links.
        collected: likewise.
    """

    def __init__(self, spool: str, collected: str) -> None:
        self._errors: dict[str, type[SidecarError]] = {spool: SpoolError, collected: DestinationError}
        self._points: dict[str, str] = {}
        self._seen: dict[str, tuple[int, int]] = {}

    def enter(self) -> None:
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

    def look(self) -> None:
        """Whether they are what `enter` saw.

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
