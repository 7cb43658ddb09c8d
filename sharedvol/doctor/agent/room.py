"""What every step of the doctor's processes keeps to: the room, names in it, and no file that was planted there."""

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
_REFUSED = (errno.EAGAIN, errno.EACCES)  # fcntl(2): either, where another has the lock


def checked_name(name: str) -> str:
    if not isinstance(name, str) or not name or "/" in name or "\0" in name or name in (".", ".."):
        raise ValueError("no name in the room")
    return name


def refuse_planted(fd: int) -> None:
    info = os.fstat(fd)
    if not stat.S_ISREG(info.st_mode) or info.st_nlink > 1:
        raise ValueError("no regular file with one name")


@contextlib.contextmanager
def listed(directory: int) -> Iterator[Iterator[os.DirEntry[str]]]:
    """The entries of an open directory, opened anew: NFS looks at the server then, and FUSE may keep an old list."""
    fd = os.open(".", DIRECTORY, dir_fd=directory)
    try:
        with os.scandir(fd) as entries:
            yield entries
    finally:
        os.close(fd)


def flock_struct(kind: int) -> bytes:
    """``struct flock`` of the whole file; its l_pid must be 0 for open file description locks, see fcntl(2)."""
    return struct.pack("@hhqqi0q", kind, os.SEEK_SET, 0, 0, 0)


def lock(fd: int, family: str, shared: bool, wait: bool) -> bool:
    """Take a lock of a family, ``both`` in the order of sharedvol's locks; False where it is refused."""
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
    """Drop the lock of a family."""
    if family in ("both", "flock"):
        fcntl.flock(fd, fcntl.LOCK_UN)
    if family != "flock":
        command = fcntl.F_SETLK if family == "posix" else fcntl.F_OFD_SETLK
        fcntl.fcntl(fd, command, flock_struct(fcntl.F_UNLCK))


def who() -> dict[str, Any]:
    """Who this process is, and on which kernel."""
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
