"""Who holds a file lock: what the holder says of itself, in a file beside the lock file.

``<lock>.holder`` is one JSON object, padded with spaces to 1,024 bytes with its line feed and written in place. Its
writer locks it for as long as it holds the lock: so the kernel says whether what stands there is of the living
holder, and no clock and no process id has to be believed. Anybody may have written what is read here.
"""

from __future__ import annotations

import errno
import json
import math
import os
import stat
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from sharedvol.errors import IdentityError, LockFileError, SharedVolError, describe
from sharedvol.identity import MAX_CONTAINER_BYTES, container_id, worker_token
from sharedvol.locks.arguments import MAX_PURPOSE
from sharedvol.locks.file import linux
from sharedvol.locks.file.pinned import PinnedFile
from sharedvol.locks.file.proc_locks import ProcLocks
from sharedvol.locks.holder import Holder
from sharedvol.text import shown

SUFFIX: Final = ".holder"
SIZE: Final = 1024

_TRIES: Final = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class FileHolder(Holder):
    """Who holds a lock file.

    Attributes:
        shared: whether others may hold it at the same time.
        pids: the processes that hold it, as far as this PID namespace sees them.
    """

    shared: bool = False
    pids: tuple[int, ...] = ()

    def __str__(self) -> str:
        """For a terminal: what the holder wrote is escaped."""
        who = [f"replica {shown(self.replica)}"] if self.replica else []
        if self.pid is not None:
            who.append(f"process {self.pid}")
        elif self.pids:
            who.append(f"process {', '.join(map(str, self.pids))}")
        words = ", ".join(who) or "another process"
        if self.purpose:
            words += f' for "{shown(self.purpose)}"'
        return words + (self.since.strftime(" since %Y-%m-%d %H:%M:%S %Z") if self.since else "")


class HolderFile:
    """The holder file of a lock, as its holder uses it. It never fails an acquire.

    Args:
        lock: the lock file.
        mode: permission bits, if it is created here.
        purpose: what the holder says that it is for.
    """

    def __init__(self, lock: str, mode: int, purpose: str) -> None:
        path = lock + SUFFIX
        self._kept = PinnedFile(path, lambda: linux.open_lock_file(path, mode))
        self._constant, self._rest = _constant(purpose), b""
        self._last = b""  # how what we wrote last begins: enough to know it by

    def write(self, token: int | None, *, look: bool) -> bool:
        """Say who holds, and lock that. Returns whether it could be.

        Args:
            token: the fencing token, if there is one.
            look: whether the path names the file that is open, too.
        """
        head = b'{"sharedvol":1,"token":%s,"since":%.6f,' % (b"null" if token is None else b"%d" % token, time.time())
        if len(head) + len(self._rest) != SIZE:
            self._rest = self._constant.ljust(SIZE - 1 - len(head)) + b"\n"
        try:
            fd = self._kept.fd
            if fd is None or not self._is_last(fd) or (look and not self._kept.is_named()):
                fd = self._kept.look()
                if os.fstat(fd).st_size > SIZE:
                    os.ftruncate(fd, SIZE)
            os.pwrite(fd, head + self._rest, 0)
            self._last = head
            return linux.try_first(fd)
        except (OSError, SharedVolError):
            self._last = b""
            return False

    def _is_last(self, fd: int) -> bool:
        """Whether there is what we wrote last: else the descriptor's number may be that of another file by now."""
        data = os.pread(fd, SIZE + 1, 0)
        return bool(self._last) and len(data) == SIZE and data.startswith(self._last)

    def drop(self) -> None:
        """Unlock: what stands there is no more of a holder."""
        if self._kept.fd is not None:
            try:
                linux.unlock_first(self._kept.fd)
            except OSError:
                self._kept.close()

    def close(self) -> None:
        """Close it, and so unlock."""
        self._kept.close()


def holder_of(path: str, holders: ProcLocks | None = None) -> FileHolder | None:
    """Who holds the lock file ``path``, asked of the kernel; None if nobody does.

    Args:
        path: of the lock file.
        holders: to ask about many files.

    Raises:
        LockFileError: it cannot be read.
    """
    holding = (holders or ProcLocks()).look(path)
    if holding.state == "free":
        return None
    if holding.state == "unknown":
        try:
            os.stat(path)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _cannot_ask(path, describe(error)) from error
        raise _cannot_ask(path, "it is not a regular file, or this user may not read it")
    return with_record(path, shared=holding.state == "shared", pids=holding.pids)


def with_record(path: str, *, shared: bool, pids: tuple[int, ...]) -> FileHolder:
    """The holder of a lock that is held: the kernel's word, and the holder's own where it has left one."""
    said = read_record(path) if not shared else None
    fields = said or {}
    return FileHolder(**fields, shared=shared, pids=pids)


def read_record(path: str) -> dict[str, Any] | None:
    """What the living holder of the lock file ``path`` says of itself; None where it says nothing."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    try:
        fd = os.open(path + SUFFIX, flags)
    except OSError:
        return None
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return None
        for _ in range(_TRIES):
            data = os.pread(fd, SIZE + 1, 0)
            locked = linux.conflict(fd)
            if locked is None or not locked[0]:
                return None
            if os.pread(fd, SIZE + 1, 0) == data:  # else it changed hands
                return parse(data)
    except OSError:
        pass
    finally:
        os.close(fd)
    return None


def parse(data: bytes) -> dict[str, Any] | None:
    """The fields of a holder file, each for itself: one of the wrong type leaves the others. None: it is none."""
    if len(data) > SIZE:
        return None
    try:
        fields = json.loads(data)
    except (ValueError, RecursionError):
        return None
    if not isinstance(fields, dict) or fields.get("sharedvol") != 1:
        return None

    def text_of(key: str, longest: int) -> str | None:
        value = fields.get(key)
        return value if isinstance(value, str) and 0 < len(value) <= longest else None

    def number_of(key: str, limit: int) -> int | None:
        value = fields.get(key)
        return value if type(value) is int and 0 <= value < limit else None

    return {
        "replica": text_of("replica", MAX_CONTAINER_BYTES),
        "pid": number_of("pid", 1 << 31),
        "worker": text_of("worker", 64),
        "purpose": text_of("purpose", MAX_PURPOSE) or "",
        "since": _time(fields.get("since")),
        "token": number_of("token", 1 << 53),
    }


def _constant(purpose: str) -> bytes:
    """The part of the line that is the same at every use, as much of the purpose as there is room for."""
    try:
        replica: str | None = container_id()
    except IdentityError:
        replica = None
    fields = {"replica": replica, "pid": os.getpid(), "worker": worker_token()}
    while True:
        said = {**fields, "purpose": purpose.encode(errors="replace").decode()}
        text = json.dumps(said, ensure_ascii=False, separators=(",", ":")).encode()
        if len(text) < SIZE - 100:  # 100: what stands before it, 83 bytes at most
            return text[1:]
        purpose = purpose[:-1]


def _time(value: object) -> datetime | None:
    if type(value) not in (int, float):
        return None
    assert isinstance(value, int | float)
    try:
        return datetime.fromtimestamp(value, UTC) if math.isfinite(value) else None
    except (ValueError, OverflowError, OSError):
        return None


def _cannot_ask(path: str, reason: str) -> LockFileError:
    return LockFileError(errno.EACCES, f"cannot tell who holds lock {path!r}: {reason}", path)
