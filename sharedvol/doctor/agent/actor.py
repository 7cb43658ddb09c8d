"""The steps of the doctor's experiments, run on request in a separate process (see process.py).

A request may come from a doctor in another container, which may be hostile. So a step works only in the room (the
doctor's own directory), on names without a slash, and never follows a symbolic link. It writes only to regular files
with a single name, because a planted hard link has a second one. Sizes and counts are bounded. Most steps do not limit
their waiting: the doctor kills an actor that takes too long.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import mmap
import os
import select
import signal
import struct
import time
from typing import Any

from sharedvol.doctor.agent.limits import MOST_BYTES, MOST_SECONDS, MOST_TIMES
from sharedvol.doctor.agent.loops import Loops
from sharedvol.doctor.agent.room import DIRECTORY, HOW, OPEN, checked_name, listed, lock, refuse_planted, unlock, who

_NO_REPLACE = 1  # RENAME_NOREPLACE of rename(2)
_KINDS = {0x8: "closed", 0x80: "moved", 0x100: "created", 0x200: "deleted"}  # inotify(7)


class Actor(Loops):
    """The open files of an actor, and its steps: every public method is a step."""

    def __init__(self) -> None:
        self._room = self._watch = -1
        self._files: dict[int, int] = {}

    # the room

    def enter(self, path: str, name: str) -> dict[str, int]:
        """Open the directory ``name`` of ``path`` as the room for all later steps."""
        top = os.open(path, DIRECTORY)
        try:
            self._room = os.open(name, DIRECTORY | os.O_NOFOLLOW, dir_fd=top)
        finally:
            os.close(top)
        return _facts(os.fstat(self._room))

    def forget(self) -> None:
        """Close everything, which frees every lock, lease and watch."""
        for fd in self._files.values():
            os.close(fd)
        self._files.clear()
        if self._watch >= 0:
            os.close(self._watch)
            self._watch = -1

    # files

    def open(self, name: str, how: str) -> int:
        """Open a file and return a handle. A created file can be opened by every user who may enter the room."""
        fd = os.open(checked_name(name), HOW[how] | OPEN, 0o600, dir_fd=self._room)
        if how == "create":
            with contextlib.suppress(OSError):  # the file system may have no modes
                os.fchmod(fd, 0o666)
        return self._keep(fd)

    def unnamed(self) -> int:
        """Create a file without a name and return a handle, see O_TMPFILE in open(2)."""
        return self._keep(os.open(".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600, dir_fd=self._room))

    def close(self, file: int) -> None:
        """Close a file."""
        os.close(self._files.pop(file))

    def facts(self, file: int) -> dict[str, int]:
        """Return fstat(2) of an open file."""
        return _facts(os.fstat(self._files[file]))

    def look(self, name: str) -> dict[str, int]:
        """Return lstat(2) of a name."""
        return _facts(os.stat(checked_name(name), dir_fd=self._room, follow_symlinks=False))

    def names(self) -> list[str]:
        """List the room."""
        with listed(self._room) as entries:
            return [entry.name for entry, _ in zip(entries, range(MOST_TIMES), strict=False)]

    def write(self, file: int, text: str, at: int | None = None) -> int:
        """Write at the file's position, or at an offset. Return the number of bytes written."""
        fd = self._own(file)
        data = text.encode()[:MOST_BYTES]
        return os.write(fd, data) if at is None else os.pwrite(fd, data, at)

    def read(self, file: int, size: int = MOST_BYTES, at: int = 0) -> str:
        """Read at most ``size`` bytes from an offset."""
        return os.pread(self._files[file], min(size, MOST_BYTES), at).decode("ascii", "replace")

    def sync(self, file: int) -> None:
        """Sync an open file."""
        os.fsync(self._files[file])

    def sync_room(self) -> None:
        """Sync the room's directory."""
        os.fsync(self._room)

    def set_mode(self, file: int, mode: int) -> None:
        """Set the permission bits of an open file."""
        os.fchmod(self._own(file), mode & 0o777)

    def date(self, file: int, nanoseconds: int) -> None:
        """Set the times of an open file."""
        os.utime(self._own(file), ns=(nanoseconds, nanoseconds))

    # names

    def link(self, source: str, target: str) -> None:
        """Create a hard link."""
        os.link(
            checked_name(source),
            checked_name(target),
            src_dir_fd=self._room,
            dst_dir_fd=self._room,
            follow_symlinks=False,
        )

    def give_name(self, file: int, name: str) -> None:
        """Link a file of `unnamed` as open(2) describes."""
        os.link(f"/proc/self/fd/{self._files[file]}", checked_name(name), dst_dir_fd=self._room, follow_symlinks=True)

    def rename(self, source: str, target: str) -> None:
        """Rename a file, replacing the target."""
        os.rename(checked_name(source), checked_name(target), src_dir_fd=self._room, dst_dir_fd=self._room)

    def rename_new(self, source: str, target: str) -> None:
        """Rename a file unless the target exists, see RENAME_NOREPLACE in renameat2(2)."""
        libc = ctypes.CDLL(None, use_errno=True)
        names = os.fsencode(checked_name(source)), os.fsencode(checked_name(target))
        if libc.renameat2(self._room, names[0], self._room, names[1], _NO_REPLACE) != 0:
            raise OSError(ctypes.get_errno(), "renameat2")

    def remove(self, name: str) -> None:
        """Remove a file."""
        os.unlink(checked_name(name), dir_fd=self._room)

    def symlink(self, target: str, name: str) -> None:
        """Create a symbolic link to another name in the room."""
        os.symlink(checked_name(target), checked_name(name), dir_fd=self._room)

    # locks and leases

    def lock(self, file: int, family: str, shared: bool = False, wait: bool = False) -> bool:
        """Lock an open file. Return False if another process holds the lock."""
        return lock(self._files[file], family, shared, wait)

    def unlock(self, file: int, family: str) -> None:
        """Unlock an open file."""
        unlock(self._files[file], family)

    def lease(self, file: int) -> bool:
        """Acquire a read lease. Return False if the kernel refuses because a process has the file open for writing."""
        fcntl.fcntl(self._files[file], fcntl.F_SETSIG, signal.SIGURG)  # SIGIO would kill us; SIGURG is ignored
        try:
            fcntl.fcntl(self._files[file], fcntl.F_SETLEASE, fcntl.F_RDLCK)
        except BlockingIOError:
            return False
        return True

    def end_lease(self, file: int) -> None:
        """Release the lease."""
        fcntl.fcntl(self._files[file], fcntl.F_SETLEASE, fcntl.F_UNLCK)

    # memory, events

    def map_write(self, file: int, text: str) -> None:
        """Write to the start of the file through a shared mapping."""
        with mmap.mmap(self._own(file), 4096, mmap.MAP_SHARED) as memory:
            memory[: len(text[:4096])] = text[:4096].encode("ascii")

    def map_read(self, file: int, size: int) -> str:
        """Read from the start of the file through a shared mapping."""
        with mmap.mmap(self._files[file], 4096, mmap.MAP_SHARED, mmap.PROT_READ) as memory:
            return memory[: min(size, 4096)].decode("ascii", "replace")

    def watch(self) -> None:
        """Watch the room with inotify(7)."""
        libc = ctypes.CDLL(None, use_errno=True)
        self._watch = libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
        path = f"/proc/self/fd/{self._room}".encode()
        if self._watch < 0 or libc.inotify_add_watch(self._watch, path, sum(_KINDS)) < 0:
            raise OSError(ctypes.get_errno(), "inotify")

    def events(self, name: str, wanted: list[str], seconds: float) -> list[str]:
        """Wait until all wanted kinds of events of ``name`` have arrived. Return the kinds that arrived in time."""
        seen: set[str] = set()
        end = time.monotonic() + min(seconds, MOST_SECONDS)
        while not seen.issuperset(wanted) and (left := end - time.monotonic()) > 0:
            if select.select([self._watch], [], [], left)[0]:
                seen |= _events(os.read(self._watch, MOST_BYTES), name)
        return sorted(seen)

    # facts

    def who(self) -> dict[str, Any]:
        """Return the identity of this process and its kernel."""
        return who()

    def clock(self) -> int:
        """Return the time in nanoseconds."""
        return time.time_ns()

    def _keep(self, fd: int) -> int:
        handle = max(self._files, default=0) + 1
        self._files[handle] = fd
        return handle

    def _own(self, file: int) -> int:
        fd = self._files[file]
        refuse_planted(fd)
        return fd


def _facts(info: os.stat_result) -> dict[str, int]:
    return {
        "inode": info.st_ino,
        "device": info.st_dev,
        "mode": info.st_mode,
        "uid": info.st_uid,
        "gid": info.st_gid,
        "links": info.st_nlink,
        "size": info.st_size,
        "modified": info.st_mtime_ns,
        "changed": info.st_ctime_ns,
    }


def _events(data: bytes, name: str) -> set[str]:
    kinds, at = set(), 0
    while at + 16 <= len(data):
        _, mask, _, length = struct.unpack_from("=iIII", data, at)
        if data[at + 16 : at + 16 + length].rstrip(b"\0") == name.encode():
            kinds |= {word for bit, word in _KINDS.items() if mask & bit}
        at += 16 + length
    return kinds
