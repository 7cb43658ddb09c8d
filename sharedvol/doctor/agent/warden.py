"""The warden: the process that creates and locks the doctor's room, and removes it when the doctor ends.

The room is ``.sharedvol-doctor-<random>``, mode 0700, in the examined directory. It contains all files of the doctor.
The warden holds flock(2) on the file ``lock`` in it while it lives. If the lock of a room is free, its run was killed
together with its warden, and the next run removes the room.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import time
from typing import Any, Final

from sharedvol.doctor.agent.limits import MOST_TIMES, PREFIX
from sharedvol.doctor.agent.messages import Messages
from sharedvol.doctor.agent.mounts import mount_of, mounts_below
from sharedvol.doctor.agent.room import DIRECTORY, OPEN, listed, who

LOCK: Final = "lock"
AGE: Final = 3600.0
"""Seconds after which a room is dead where locks cannot be trusted. No run takes this long."""

_MOST_SUBDIRECTORIES: Final = 200
_MOST_ENTRIES: Final = 5000
_REMOVALS: Final = 3  # on NFS and FUSE, a file that a killed process had open may come back under another name


class Warden(Messages):
    """The steps of the warden: every public method is a step."""

    def __init__(self) -> None:
        self._top = self._room = self._lock = -1
        self._name = ""

    def inspect(self, path: str) -> dict[str, Any]:
        """Open the directory and return its owner, its mode and its mount."""
        self._top = os.open(path, DIRECTORY)
        with listed(self._top):  # raises if it is not readable
            pass
        info = os.fstat(self._top)
        return {"uid": info.st_uid, "gid": info.st_gid, "mode": info.st_mode, **mount_of(self._top)}

    def space(self) -> dict[str, int]:
        """Return the total and the free space and inodes of the file system, see statvfs(3)."""
        info = os.fstatvfs(self._top)
        return {
            "bytes": info.f_blocks * info.f_frsize,
            "free": info.f_bavail * info.f_frsize,
            "inodes": info.f_files,
            "free_inodes": info.f_favail,
        }

    def who(self) -> dict[str, Any]:
        """Return the identity of this process and its kernel."""
        return who()

    def make(self, open_to_all: bool = False) -> str:
        """Create the room, lock it and return its name.

        Args:
            open_to_all: give the room the mode of the directory, for a peer of another user.
        """
        self._name = PREFIX + os.urandom(8).hex()
        os.mkdir(self._name, 0o700, dir_fd=self._top)  # fails if the name exists, even as a link
        self._room = os.open(self._name, DIRECTORY | os.O_NOFOLLOW, dir_fd=self._top)
        with listed(self._room) as entries:
            if next(entries, None) is not None:  # another user has replaced the directory
                raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY))
        if open_to_all:
            os.fchmod(self._room, 0o700 | (os.fstat(self._top).st_mode & 0o777))
        self._lock = os.open(f".{LOCK}", os.O_RDWR | os.O_CREAT | os.O_EXCL | OPEN, 0o600, dir_fd=self._room)
        with contextlib.suppress(OSError):  # the file system may have no locks, which the experiments report
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # The file gets its name once the lock is held, because another doctor removes a room whose lock is free.
        with contextlib.suppress(OSError):  # without a lock file the room stays until it is old
            os.rename(f".{LOCK}", LOCK, src_dir_fd=self._room, dst_dir_fd=self._room)
        return self._name

    def survey(self) -> dict[str, Any]:
        """Count files of other users and find subdirectories on other mounts, without opening or changing them."""
        foreign: dict[int, int] = {}
        elsewhere, below = [], 0
        device, seen = os.fstat(self._top).st_dev, 0
        with listed(self._top) as entries:
            for entry in entries:
                seen += 1
                if seen > _MOST_ENTRIES:
                    break
                if entry.name.startswith(PREFIX):
                    continue
                with contextlib.suppress(OSError):
                    info = entry.stat(follow_symlinks=False)
                    if info.st_uid != os.geteuid():
                        foreign[info.st_uid] = foreign.get(info.st_uid, 0) + 1
                    if stat.S_ISDIR(info.st_mode) and below < _MOST_SUBDIRECTORIES:
                        below += 1
                        if info.st_dev != device or self._crosses(entry.name):
                            elsewhere.append(entry.name)
        return {"foreign": sum(foreign.values()), "elsewhere": elsewhere[:20], "deeper": mounts_below(self._top)[:20]}

    def _crosses(self, name: str) -> bool:
        """Return whether a subdirectory is on another mount: rename(2) compares mounts before it searches the file."""
        missing = f"{PREFIX}missing-{os.urandom(8).hex()}"
        try:
            os.rename(missing, f"{name}/{missing}", src_dir_fd=self._top, dst_dir_fd=self._top)
        except OSError as error:
            return error.errno == errno.EXDEV
        return False

    def sweep(self) -> None:
        """Remove everything in the room except the lock."""
        with listed(self._room) as entries:
            names = [entry.name for entry in entries if entry.name != LOCK]
        for name in names:
            with contextlib.suppress(OSError):
                os.unlink(name, dir_fd=self._room)

    def clean(self, believe: bool) -> list[int]:
        """Remove the rooms of dead runs.

        Args:
            believe: whether a free lock proves that its holder is dead. If not, only the age of a room counts.

        Returns:
            The number of rooms that were removed, and the number that were left.
        """
        removed = left = 0
        with listed(self._top) as entries:
            names = [entry.name for entry in entries if entry.name.startswith(PREFIX) and entry.name != self._name]
        for name in names[:MOST_TIMES]:
            with contextlib.suppress(OSError):
                if self._remove_dead(name, believe):
                    removed += 1
                    continue
            left += 1
        return [removed, left]

    def _remove_dead(self, name: str, believe: bool) -> bool:
        room = os.open(name, DIRECTORY | os.O_NOFOLLOW, dir_fd=self._top)
        fd = -1
        try:
            info = os.fstat(room)
            if info.st_uid != os.geteuid():
                return False
            old = time.time() - info.st_mtime > AGE
            try:
                fd = os.open(LOCK, os.O_RDWR | OPEN, dir_fd=room)
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except FileNotFoundError:
                believe = False  # a room that is being created has no lock either
                with listed(room) as entries:
                    if any(entry.name != f".{LOCK}" for entry in entries):
                        return False  # not a room: a user renamed another directory to this name
            except OSError:
                return False  # its warden is alive
            return (believe or old) and remove_room(self._top, name, room)
        finally:
            os.close(room)
            if fd >= 0:
                os.close(fd)

    def leave(self) -> None:
        """Remove the room."""
        self._leave_meeting()
        if self._lock >= 0:
            # Close the lock first, because NFS and FUSE rename an open file to a hidden name instead of removing it.
            os.close(self._lock)
            self._lock = -1
        if self._room >= 0:
            remove_room(self._top, self._name, self._room)


def remove_room(top: int, name: str, room: int) -> bool:
    """Remove a room and its files; it has no directories. Return False if something is left."""
    for _ in range(_REMOVALS):
        with listed(room) as entries:
            names = [entry.name for entry in entries]
        for entry in names:
            with contextlib.suppress(OSError):
                os.unlink(entry, dir_fd=room)
        try:
            os.rmdir(name, dir_fd=top)
        except OSError:
            continue
        return True
    return False
