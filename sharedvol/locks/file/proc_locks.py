"""Who holds a lock file, found out without standing in anybody's way.

Three sources, see proc_locks(5) and fcntl(2). /proc/locks names processes, but leaves out those of other PID
namespaces, except for open file description locks, which name none. F_OFD_GETLK sees every fcntl lock and takes
nothing. A flock lock of another container alone is seen by neither: for that, and only where the two found
nothing and this is not the host's PID namespace, a shared lock is tried and dropped at once.
"""

from __future__ import annotations

import fcntl
import os
import re
import stat
from collections import defaultdict
from dataclasses import dataclass
from typing import Final, Literal

from sharedvol.locks.file import linux

_HOSTS_PIDS: Final = "pid:[4026531836]"  # PROC_PID_INIT_INO of the kernel: there /proc/locks leaves out nothing
_LINE: Final = re.compile(
    r"\d+: (FLOCK|POSIX|OFDLCK) +\w+ +(READ|WRITE) +(-?\d+) ([0-9a-f]+):([0-9a-f]+):(\d+) ", re.ASCII
)


@dataclass(frozen=True, slots=True)
class LockState:
    """What is known of one lock file.

    Attributes:
        state: ``free``, ``shared``, ``exclusive``; ``unknown`` where it cannot be read.
        pids: the processes that hold it, as far as this PID namespace sees them.
    """

    state: Literal["free", "shared", "exclusive", "unknown"]
    pids: tuple[int, ...] = ()


class ProcLocks:
    """One reading of /proc/locks, to ask about many files."""

    def __init__(self) -> None:
        self._devices = _devices()
        self._locks: dict[tuple[str, int], list[tuple[bool, int]]] = defaultdict(list)
        try:
            with open("/proc/locks") as file:
                lines = file.read().splitlines()
            self._complete = os.readlink("/proc/self/ns/pid") == _HOSTS_PIDS
        except OSError:
            lines, self._complete = [], False
        for line in lines:
            found = _LINE.match(line)  # one that waits has an arrow, and is none
            if found:
                device = f"{int(found[4], 16)}:{int(found[5], 16)}"
                self._locks[device, int(found[6])].append((found[2] == "WRITE", int(found[3])))

    def look(self, path: str) -> LockState:
        """Who holds the lock file ``path``. It is opened for reading, through no symbolic link."""
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        except OSError:
            return LockState("unknown")
        try:
            info = os.fstat(fd)
            if not stat.S_ISREG(info.st_mode):
                return LockState("unknown")
            found = list(self._locks.get((self._device(fd, info), info.st_ino), ()))
            asked = linux.conflict(fd)
            if asked is not None:
                found.append(asked)
            if not found and not self._complete:
                return LockState(_try_shared(fd))
        except OSError:
            return LockState("unknown")
        finally:
            os.close(fd)
        if not found:
            return LockState("free")
        state: Literal["shared", "exclusive"] = "exclusive" if any(alone for alone, _ in found) else "shared"
        return LockState(state, tuple(sorted({pid for _, pid in found if pid > 0})))

    def _device(self, fd: int, info: os.stat_result) -> str:
        """The file system's own number, which /proc/locks has: btrfs gives stat(2) another."""
        plain = f"{os.major(info.st_dev)}:{os.minor(info.st_dev)}"
        try:
            with open(f"/proc/self/fdinfo/{fd}") as file:
                mount = re.search(r"^mnt_id:\s*(\d+)$", file.read(), re.MULTILINE)
        except OSError:
            return plain
        return self._devices.get(mount[1], plain) if mount else plain


def _devices() -> dict[str, str]:
    """The device of each mount, see proc_pid_mountinfo(5)."""
    try:
        with open("/proc/self/mountinfo", errors="surrogateescape") as file:
            return {mount: device for mount, _, device, *_ in (line.split(" ") for line in file)}
    except (OSError, ValueError):
        return {}


def _try_shared(fd: int) -> Literal["free", "exclusive"]:
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return "exclusive"
    fcntl.flock(fd, fcntl.LOCK_UN)
    return "free"
