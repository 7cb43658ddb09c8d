"""The user who will write a replica's logs, because a server may start as root and run its workers as another user.

gunicorn does so with ``user=``. It forks its workers as root, and they change their user after they have logged a first
record. After that they could not make files in a directory that root made.
"""

from __future__ import annotations

import contextlib
import os
import signal
import stat


def future_owner() -> tuple[int, int] | None:
    """Return the user and group that this process or its children will change to, or None."""
    if os.geteuid() != 0:
        return None
    # gunicorn's arbiter has the settings. It handles SIGTERM in the master, and in a worker until its user changes.
    arbiter = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    settings = getattr(arbiter, "cfg", None)
    uid, gid = getattr(settings, "uid", 0), getattr(settings, "gid", 0)
    return (uid, gid) if isinstance(uid, int) and isinstance(gid, int) and uid > 0 else None


class OwnDirectories:
    """The directories that a handler gives to the user who will write.

    Args:
        own: whether existing directories on the path belong to this replica alone, because they contain its name.
    """

    def __init__(self, own: bool) -> None:
        self._own = own
        self._made: set[tuple[int, int]] = set()

    def made(self, fd: int) -> None:
        """Remember a directory that this process has just made."""
        info = os.fstat(fd)
        # In a directory that others may write, it may have been replaced. A user gains nothing from an empty directory.
        if info.st_uid == os.geteuid() and not os.listdir(fd):
            self._made.add((info.st_dev, info.st_ino))

    def hand_over(self, fd: int, parent: os.stat_result) -> None:
        """Give the directory to the user who will write, if root owns it and no other user can have put it there."""
        owner = future_owner()
        if owner is None:
            return
        info = os.fstat(fd)
        safe = parent.st_uid == 0 and (not parent.st_mode & 0o022 or bool(parent.st_mode & stat.S_ISVTX))
        if info.st_uid == 0 and ((info.st_dev, info.st_ino) in self._made or (self._own and safe)):
            with contextlib.suppress(OSError):  # without CAP_CHOWN; the handler reports what it cannot write
                os.fchown(fd, *owner)
