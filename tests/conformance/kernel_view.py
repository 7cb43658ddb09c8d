"""The suite's own part in the locks: what the kernel shows of them, and a peer that uses nothing but system calls."""

from __future__ import annotations

import fcntl
import os
import struct
import time
from pathlib import Path
from types import TracebackType

import adapter


def wait_for(condition: object, what: str) -> None:
    """Look again until ``condition()``, which something else brings about, is true."""
    assert callable(condition)
    end = time.monotonic() + adapter.LIMIT
    while not condition():
        assert time.monotonic() < end, f"waited in vain for: {what}"
        time.sleep(0.001)


def blocked(path: Path) -> int:
    """How many wait in the kernel for a lock of ``path``: the ``->`` lines of proc_locks(5)."""
    info = path.stat()
    name = f" {os.major(info.st_dev):02x}:{os.minor(info.st_dev):02x}:{info.st_ino} "
    return sum("->" in line and name in line for line in Path("/proc/locks").read_text().splitlines())


def wait_blocked(path: Path, count: int) -> None:
    """Until ``count`` wait in the kernel for ``path``."""
    wait_for(lambda: path.exists() and blocked(path) == count, f"{count} to wait in the kernel for {path}")


def _struct(kind: int) -> bytes:
    return struct.pack("@hhqqi0q", kind, os.SEEK_SET, 0, 0, 0)


def write_locked(path: Path) -> bool:
    """Whether an fcntl write lock is on ``path``; takes nothing: F_OFD_GETLK in fcntl(2)."""
    fd = os.open(path, os.O_RDONLY)
    try:
        found = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _struct(fcntl.F_RDLCK))
    finally:
        os.close(fd)
    kind: int = struct.unpack("@hhqqi0q", found)[0]
    return kind == fcntl.F_WRLCK


class Raw:
    """A holder of one family's lock, or of both, by system calls alone. Takes it at once, or ``taken`` is False."""

    def __init__(self, path: Path, family: str = "both", *, shared: bool = False) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            if family != "flock":
                fcntl.fcntl(self._fd, fcntl.F_OFD_SETLK, _struct(fcntl.F_RDLCK if shared else fcntl.F_WRLCK))
            if family != "fcntl":
                fcntl.flock(self._fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            self.taken = True
        except (BlockingIOError, PermissionError):
            self.release()
            self.taken = False

    def release(self) -> None:
        """Free it. The locks are of the open file description, and go with it."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Raw:
        assert self.taken, "the suite's own lock was not free"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def is_free(path: Path, family: str = "both", *, shared: bool = False) -> bool:
    """Whether the lock could be taken now, and was for a moment."""
    probe = Raw(path, family, shared=shared)
    probe.release()
    return probe.taken
