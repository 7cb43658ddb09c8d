"""How records get into a log file: whole, in order and once, whatever comes between.

Between any two steps of this a signal handler or a finalizer may log, raise or fork, the disk may be full, or the
process may be killed. So a record waits in a queue until the file has all of it, and how much the file has is
asked of the file itself: nobody else writes it.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import sys
import time
from collections import deque
from datetime import date as Date
from typing import Protocol

from sharedvol.logs.files import LogFile, LogFiles

LOOK_EVERY = 1.0
"""Seconds after which a record first looks whether the file still has its name."""

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


class FailureReporter(Protocol):
    """Who is told of what cannot be written."""

    def failed(self, path: str, error: OSError) -> None:
        """The first record that cannot be written since one could."""

    def unsynced(self, path: str, error: OSError) -> None:
        """A record was written, and fsync(2) failed."""

    def lost(self, data: bytes) -> None:
        """A record that is not in the log, nor will be."""

    def note(self, lost: int, since: float) -> bytes:
        """What the log is to say of records that it does not have, the first lost at the time ``since``."""


class _Entry:
    """A record on its way into the file.

    Attributes:
        data: its line or lines.
        sync: whether fsync(2) is to follow.
        start: where in the file it begins, once it may have begun; else -1.
        done: it is in the file.
    """

    __slots__ = ("data", "done", "start", "sync")

    def __init__(self, data: bytes, sync: bool) -> None:
        self.data, self.sync, self.start, self.done = data, sync, -1, False


class LogWriter:
    """Writes the records of one process. Calls must not overlap in two threads; in one thread they may.

    Args:
        files: where to.
        max_bytes: a file has no more, unless a single record does.
        at_midnight: begin another file each day.
        told: is told of what cannot be written.

    Attributes:
        lost: how many records could not be written.
    """

    def __init__(self, files: LogFiles, max_bytes: float, at_midnight: bool, told: FailureReporter) -> None:
        self._files, self._max_bytes, self._at_midnight, self._told = files, max_bytes, at_midnight, told
        self._queue: deque[_Entry] = deque()
        self._busy = False
        self._file: LogFile | None = None
        self._number, self._day = 1, Date.min
        self._end = 0
        self._valid_from = self._valid_until = 0.0
        self._bytes, self._covered = b"", 0  # of the first in the queue: what is written for it
        self._failing = False
        self.lost = self._untold = 0
        self._since = 0.0

    @property
    def path(self) -> str | None:
        """The file that is open."""
        return None if self._file is None else self._file.path

    def write(self, data: bytes, sync: bool) -> None:
        """Put a record at the end of the log. Raises nothing of its own."""
        self._queue.append(_Entry(data, sync))
        self.drain()

    def drain(self) -> None:
        """Go on with what an exception or a full disk has left unfinished."""
        # Who logs in the middle of this, from a signal handler or a finalizer, only leaves it in the queue.
        while self._queue and not (self._busy and self._is_draining()):
            self._busy = True
            try:
                while self._queue:
                    self._write_first()
            except OSError as error:
                self._fail(error)
                return
            finally:
                self._busy = False

    def close(self) -> None:
        """Close the file; the next record opens it again. What cannot be finished is told."""
        if self._busy and self._is_draining():
            return  # from a signal handler in the middle of a write, which needs the file
        if self._untold:
            self._queue.append(_Entry(b"", False))
        self.drain()
        self._leave()
        self._give_up()

    def abandon(self) -> None:
        """In a forked child: the file and what was on its way into it are the parent's."""
        self._untold = 0
        for entry in self._queue:
            entry.done = True
        if not (self._busy and self._is_draining()):
            self._leave()
        elif self._file is not None:
            self._file.blind()  # the fork came in the middle of a write, with which the child goes on

    def _is_draining(self) -> bool:
        """Whether a caller is in `drain`: an exception may come when it is about to say that it no longer is."""
        frame = sys._getframe(2)
        while frame is not None:
            if frame.f_code is LogWriter.drain.__code__ and frame.f_locals["self"] is self:
                return True
            frame = frame.f_back  # type: ignore[assignment]
        return False

    def _write_first(self) -> None:
        entry = self._queue[0]
        if not entry.done:
            try:
                self._write(entry)
            except OSError as error:
                if entry.done:
                    return
                if self._file is None or self._failing or error.errno in _FULL:
                    raise
                self._leave()  # too long for a limit, or broken: perhaps another one can be written
                self._number += 1
                self._write(entry)
        self._queue.popleft()

    def _write(self, entry: _Entry) -> None:
        file, size = self._file, self._end
        if file is None or not self._is_as_left(entry):
            file, size = self._ready(entry)
        if entry.start < 0:
            self._bytes, self._covered = entry.data, self._untold
            if file.torn or self._untold:
                note = self._told.note(self._untold, self._since) if self._untold else b""
                self._bytes = (b"\n" if file.torn else b"") + note + entry.data
            entry.start = size
        # How much of it is there the file itself tells, as it is ours alone: that holds after an exception, too.
        missing = self._bytes[size - entry.start :]
        while missing and not entry.done:
            written = os.write(file.fd, missing)
            if not written:
                raise OSError(errno.EIO, "nothing was written")
            missing = missing[written:]
        # In this order: an exception may come after each line, and then they are run again.
        self._end = entry.start + len(self._bytes)
        if self._failing or self._covered or file.torn:
            self._untold, self._covered, self._failing, file.torn = self._untold - self._covered, 0, False, False
        entry.done = True
        if entry.sync:
            try:
                os.fsync(file.fd)
            except OSError as error:
                self._told.unsynced(file.path, error)

    def _is_as_left(self, entry: _Entry) -> bool:
        """Whether it goes into the file as the last record did: the usual case, and told by two cheap calls."""
        file = self._file
        if file is None or entry.start >= 0 or self._untold or file.torn:
            return False
        if not self._valid_from <= time.time() < self._valid_until or self._end + len(entry.data) > self._max_bytes:
            return False
        try:
            # Only we write it. Of another size it is not what it was: other code closed the descriptor, as daemons
            # do, and it is something else by now.
            return os.lseek(file.fd, 0, os.SEEK_END) == self._end
        except OSError:
            return False

    def _ready(self, entry: _Entry) -> tuple[LogFile, int]:
        """The file that an entry goes to, and its size."""
        now = time.time()
        size = self._look()
        if self._file is not None and 0 <= entry.start < size:
            return self._file, size  # a part of it is there: the rest belongs behind it
        entry.start = -1
        day, until = _day_of(now) if self._at_midnight else (Date.min, math.inf)
        if day != self._day:
            self._leave()
            self._day, self._number = day, 1
        if self._file is not None and size and size + len(entry.data) > self._max_bytes:
            self._leave()
            self._number += 1
        if self._file is None:
            room = max(self._max_bytes - len(entry.data), 0)
            self._file = self._files.open(day if self._at_midnight else None, self._number, room)
            self._number = self._file.number
            size = os.fstat(self._file.fd).st_size
        self._valid_from, self._valid_until = now, min(now + LOOK_EVERY, until)
        return self._file, size

    def _look(self) -> int:
        """The size of the file; 0, after it was left, where it is not what it was or has lost its name.

        Without leases a sidecar takes a file that has been quiet for long; or somebody else moved it.
        """
        file = self._file
        if file is None:
            return 0
        with contextlib.suppress(OSError):
            info = os.fstat(file.fd)
            if (info.st_dev, info.st_ino) == (file.dev, file.ino) and info.st_nlink and file.has_its_name():
                return info.st_size
        self._leave()
        return 0

    def _leave(self) -> None:
        """What was half written into the file that is left is written whole into the next."""
        file, self._file = self._file, None
        if self._queue:
            self._queue[0].start = -1
        if file is not None:
            file.close()

    def _fail(self, error: OSError) -> None:
        if not self._failing:
            self._failing = True
            self._told.failed(self.path or self._files.directory, error)
        self._give_up()

    def _give_up(self) -> None:
        """Tell what cannot be written. A record that was begun stays, to be finished."""
        kept = 1 if self._queue and self._is_begun(self._queue[0]) else 0
        while len(self._queue) > kept:
            entry = self._queue[kept]
            if entry.data and not entry.done:
                if not self._untold:
                    self._since = time.time()
                self.lost += 1
                self._untold += 1
                self._told.lost(entry.data)
            del self._queue[kept]

    def _is_begun(self, entry: _Entry) -> bool:
        if entry.start < 0 or self._file is None:
            return False
        with contextlib.suppress(OSError):
            return os.fstat(self._file.fd).st_size > entry.start
        return False


def _day_of(now: float) -> tuple[Date, float]:
    """The local day of a time, and when it ends."""
    at = time.localtime(now)
    end = time.mktime((at.tm_year, at.tm_mon, at.tm_mday + 1, 0, 0, 0, 0, 0, -1))
    return Date(at.tm_year, at.tm_mon, at.tm_mday), end
