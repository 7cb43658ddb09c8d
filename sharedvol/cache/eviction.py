"""Limit the size of the entries. The least recently used are evicted first.

``tally`` holds the total bytes of the entries and is never too low: a new entry is added before it gets its name, and
an old one is subtracted after it was removed, all under ``limits.lock``. So after a kill in between, or after another
program removed an entry, the tally is at worst too high. The entries are counted again if there seems to be no room,
after a reboot (the disk may have an old tally), and if the tally is missing or damaged.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
from collections.abc import Iterator
from typing import Final

from sharedvol.cache.entries import Entries, FoundEntry
from sharedvol.cache.temporary import Temporary
from sharedvol.errors import LockLostError
from sharedvol.filesystem import open_directory
from sharedvol.host import here
from sharedvol.locks import FileLock

_TALLY: Final = "tally"
_LINE: Final = "sharedvol-tally 1 {total:020d} {boot:36}\n"
_PATTERN: Final = re.compile(rb"sharedvol-tally 1 (\d{20}) (\S+) *\n", re.ASCII)
_BYTES: Final = 18 + 21 + 37
_LOCK_SECONDS: Final = 30.0  # a computed value must not wait indefinitely for a stopped process
_LEFT_AFTER_EVICTION: Final = 0.9  # of the limit, so that not every new entry makes it count all others


class SizeLimit:
    """The limit of a version's entries.

    Args:
        entries: the entries.
        max_bytes: the most bytes of all entries, including headers; None for no limit.
    """

    def __init__(self, entries: Entries, max_bytes: int | None) -> None:
        self._entries, self._max = entries, max_bytes
        self._boot = here()[0] or "-"
        self._lock = FileLock(os.path.join(entries.path, "limits.lock"), timeout=_LOCK_SECONDS, allow_network=True)

    def fits(self, size: int) -> bool:
        """Return whether an entry of so many bytes can be stored at all."""
        return self._max is None or size <= self._max

    def place(self, temporary: Temporary, name: str, size: int) -> None:
        """Give a complete temporary its name, once there is room.

        Raises:
            OSError: it cannot be stored.
            LockTimeout: another process that stores an entry does not end.
        """
        if self._max is None:
            self._forget_tally()
            temporary.rename(name)
            return
        with self._held(), self._tally() as tally:
            replaced = temporary.replaced(name)
            total = tally.read()
            others = None if total is None else max(0, total - replaced)
            if others is None or others + size > self._max:
                others, _ = self._evict(self._max - size, besides=name)
                if others + size > self._max:
                    raise OSError(errno.ENOSPC, "the entries that are there cannot be removed")
            tally.write(others + replaced + size)
            temporary.rename(name)
            tally.write(others + size)

    def trim(self) -> int:
        """Evict what exceeds the limit, and count again. Return how many entries were evicted.

        Raises:
            OSError, LockTimeout: as `place`.
        """
        if self._max is None:
            return 0
        with self._held():
            # Evict first: on a full disk the tally can only be created once there is room. It may be too high until
            # then.
            total, evicted = self._evict(self._max)
            with self._tally() as tally:
                tally.write(total)
        return evicted

    def _evict(self, room: int, besides: str = "") -> tuple[int, int]:
        """Make all other entries fit into ``room`` bytes. Return the bytes that are left, and how many were evicted."""
        assert self._max is not None
        found = [one for one in self._entries.scan() if one.regular and one.name != besides]
        total = sum(one.size for one in found)
        if total <= room:
            return total, 0
        aim, evicted = min(room, int(self._max * _LEFT_AFTER_EVICTION)), 0
        found.sort(key=_last_use)
        for one in found:
            if total <= aim:
                break
            with contextlib.suppress(OSError):
                self._entries.remove(one.name)
                total -= one.size
                evicted += 1
        return total, evicted

    @contextlib.contextmanager
    def _held(self) -> Iterator[None]:
        if self._lock.held:  # in a signal handler: the thread that it interrupted has already read the tally
            raise OSError(errno.EDEADLK, "this thread is storing another entry")
        with contextlib.suppress(LockLostError), self._lock:  # lost: the version was purged meanwhile
            yield

    @contextlib.contextmanager
    def _tally(self) -> Iterator[_TallyFile]:
        above = open_directory(self._entries.top, self._entries.version)
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
            fd = os.open(_TALLY, flags, 0o666, dir_fd=above)
        finally:
            os.close(above)
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise OSError(errno.EINVAL, "not a regular file", os.path.join(self._entries.path, _TALLY))
            yield _TallyFile(fd, self._boot)
        finally:
            os.close(fd)

    def _forget_tally(self) -> None:
        """Remove the tally, because storing without a limit does not count. A process with a limit counts again."""
        above = open_directory(self._entries.top, self._entries.version)
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(_TALLY, dir_fd=above)
        finally:
            os.close(above)


class _TallyFile:
    """The open file ``tally``, written in place by one pwrite, which a SIGKILL cannot interrupt."""

    def __init__(self, fd: int, boot: str) -> None:
        self._fd, self._boot = fd, boot

    def read(self) -> int | None:
        """Return the bytes that are stored, or more; None if the file is missing, damaged or old."""
        found = _PATTERN.fullmatch(os.pread(self._fd, _BYTES + 1, 0))
        return int(found[1]) if found and found[2].decode("ascii", "replace") == self._boot != "-" else None

    def write(self, total: int) -> None:
        """Write how many bytes are stored.

        Raises:
            OSError: the disk is full.
        """
        os.pwrite(self._fd, _LINE.format(total=total, boot=self._boot).encode(), 0)


def _last_use(entry: FoundEntry) -> int:
    return entry.used_ns
