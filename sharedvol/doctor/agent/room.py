"""Helpers for steps in the room: checks of names and files, listings, and locks."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import struct
from collections.abc import Iterator
from typing import Any

OPEN = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
HOW = {
    "create": os.O_RDWR | os.O_CREAT | os.O_EXCL,
    "change": os.O_RDWR,
    "read": os.O_RDONLY,
    "write": os.O_WRONLY,
    "append": os.O_WRONLY | os.O_APPEND,
}
_REFUSED = (errno.EAGAIN, errno.EACCES)  # fcntl(2) raises either if another process holds the lock


def checked_name(name: str) -> str:
    """Return ``name`` if it is the name of a file in the room.

    Raises:
        ValueError: it is not.
    """
    if not isinstance(name, str) or not name or "/" in name or "\0" in name or name in (".", ".."):
        raise ValueError("not a name in the room")
    return name


def refuse_planted(fd: int) -> None:
    """Refuse an open file that another user may have planted.

    Raises:
        ValueError: it is not a regular file with a single name.
    """
    info = os.fstat(fd)
    if not stat.S_ISREG(info.st_mode) or info.st_nlink > 1:
        raise ValueError("not a regular file with a single name")


@contextlib.contextmanager
def listed(directory: int) -> Iterator[Iterator[os.DirEntry[str]]]:
    """List an open directory by a new descriptor, so that NFS queries the server and FUSE does not reuse a list."""
    fd = os.open(".", DIRECTORY, dir_fd=directory)
    try:
        with os.scandir(fd) as entries:
            yield entries
    finally:
        os.close(fd)


def flock_struct(kind: int) -> bytes:
    """Return a ``struct flock`` for the whole file. Open file description locks need l_pid 0, see fcntl(2)."""
    return struct.pack("@hhqqi0q", kind, os.SEEK_SET, 0, 0, 0)


def lock(fd: int, family: str, shared: bool, wait: bool) -> bool:
    """Acquire a lock of a family; ``both`` in the order of sharedvol's locks. Return False if it is refused."""
    if family == "both":
        if not lock(fd, "ofd", shared, wait):
            return False
        if lock(fd, "flock", shared, wait):
            return True
        unlock(fd, "ofd")
        return False
    try:
        if family == "flock":
            fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
        else:
            command = {
                ("ofd", False): fcntl.F_OFD_SETLK,
                ("ofd", True): fcntl.F_OFD_SETLKW,
                ("posix", False): fcntl.F_SETLK,
                ("posix", True): fcntl.F_SETLKW,
            }[family, wait]
            fcntl.fcntl(fd, command, flock_struct(fcntl.F_RDLCK if shared else fcntl.F_WRLCK))
    except OSError as error:
        if error.errno in _REFUSED and not wait:
            return False
        raise
    return True


def unlock(fd: int, family: str) -> None:
    """Release the lock of a family."""
    if family in ("both", "flock"):
        fcntl.flock(fd, fcntl.LOCK_UN)
    if family != "flock":
        command = fcntl.F_SETLK if family == "posix" else fcntl.F_OFD_SETLK
        fcntl.fcntl(fd, command, flock_struct(fcntl.F_UNLCK))


def who() -> dict[str, Any]:
    """Return the identity of this process and its kernel."""
    umask = os.umask(0)
    os.umask(umask)
    with open("/proc/self/status", encoding="ascii") as file:
        capabilities = next((int(line.split()[1], 16) for line in file if line.startswith("CapEff")), 0)
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        boot = file.read(40).strip()
    return {
        "uid": os.geteuid(),
        "gid": os.getegid(),
        "groups": os.getgroups()[:100],
        "umask": umask,
        "capabilities": capabilities,
        "host": os.environ.get("HOSTNAME") or os.uname().nodename,
        "boot": boot,
    }
