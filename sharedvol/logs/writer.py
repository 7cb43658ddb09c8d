"""Write records to a log file: complete, in order and once, in spite of interruptions.

Between any two steps a signal handler or a finalizer may log, raise or fork, the disk may be full, or the process may
be killed. So a record waits in a queue until the file contains all of it. The size of the file shows how much it
contains, because no other process writes it.
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

CHECK_EVERY = 1.0
"""Seconds after which a record checks again whether the file still has its name."""

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


class FailureReporter(Protocol):
    """Receives what cannot be written."""

    def failed(self, path: str, error: OSError) -> None:
        """Report an error. Called for the first record that fails after one that was written."""

    def unsynced(self, path: str, error: OSError) -> None:
        """Report that a record was written but fsync(2) failed."""

    def lost(self, data: bytes) -> None:
        """Take a record that will not be in the log."""

    def note(self, lost: int, since: float) -> bytes:
        """Return a note for the log about the records that are missing, the first since the time ``since``."""


class _Entry:
    """A record on its way into the file.

    Attributes:
        data: its line or lines.
        sync: whether to call fsync(2) after it.
        start: its position in the file once a part of it may be there; otherwise -1.
        done: whether the file contains it.
    """

    __slots__ = ("data", "done", "start", "sync")

    def __init__(self, data: bytes, sync: bool) -> None:
        self.data, self.sync, self.start, self.done = data, sync, -1, False


class LogWriter:
    """Writes the records of one process. Calls must not overlap in two threads; in one thread they may.

    Args:
        files: the log files.
        max_bytes: the maximum size of a file, unless a single record is larger.
        at_midnight: start another file each day.
        reporter: receives what cannot be written.

    Attributes:
        lost: the number of records that could not be written.
    """

    def __init__(self, files: LogFiles, max_bytes: float, at_midnight: bool, reporter: FailureReporter) -> None:
        self._files, self._max_bytes, self._at_midnight, self._reporter = files, max_bytes, at_midnight, reporter
        self._queue: deque[_Entry] = deque()
        self._busy = False
        self._file: LogFile | None = None
        self._number, self._day = 1, Date.min
        self._end = 0
        self._valid_from = self._valid_until = 0.0
        self._bytes, self._covered = b"", 0  # what is written for the first record of the queue
        self._failing = False
        self.lost = self._unreported = 0
        self._since = 0.0

    @property
    def path(self) -> str | None:
        """The path of the open file."""
        return None if self._file is None else self._file.path

    def write(self, data: bytes, sync: bool) -> None:
        """Append a record to the log. Errors of the file are not raised."""
        self._queue.append(_Entry(data, sync))
        self.drain()

    def drain(self) -> None:
        """Write what is in the queue, such as a record that an exception or a full disk interrupted."""
        # A signal handler or finalizer that logs during this only adds its record to the queue.
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
        """Close the file. The next record opens it again. Records that cannot be finished are reported."""
        if self._busy and self._is_draining():
            return  # called by a signal handler during a write, which needs the file
        if self._unreported:
            self._queue.append(_Entry(b"", False))
        self.drain()
        self._leave()
        self._give_up()

    def abandon(self) -> None:
        """Drop the file and the queue in a forked child, because the parent writes them."""
        self._unreported = 0
        for entry in self._queue:
            entry.done = True
        if not (self._busy and self._is_draining()):
            self._leave()
        elif self._file is not None:
            self._file.blind()  # the fork interrupted a write, which the child will continue

    def _is_draining(self) -> bool:
        """Return whether a caller runs `drain`. An exception may leave ``_busy`` set, so the stack decides."""
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
                self._leave()  # over a limit, or broken: try another file
                self._number += 1
                self._write(entry)
        self._queue.popleft()

    def _write(self, entry: _Entry) -> None:
        file, size = self._file, self._end
        if file is None or not self._is_as_left(entry):
            file, size = self._ready(entry)
        if entry.start < 0:
            self._bytes, self._covered = entry.data, self._unreported
            if file.torn or self._unreported:
                note = self._reporter.note(self._unreported, self._since) if self._unreported else b""
                self._bytes = (b"\n" if file.torn else b"") + note + entry.data
            entry.start = size
        # The size of the file shows how much of the record it contains, even after an exception: no other process
        # writes it.
        missing = self._bytes[size - entry.start :]
        while missing and not entry.done:
            written = os.write(file.fd, missing)
            if not written:
                raise OSError(errno.EIO, "nothing was written")
            missing = missing[written:]
        # The order matters: an exception may interrupt after each line, and then all of them run again.
        self._end = entry.start + len(self._bytes)
        if self._failing or self._covered or file.torn:
            self._unreported, self._covered, self._failing, file.torn = (
                self._unreported - self._covered,
                0,
                False,
                False,
            )
        entry.done = True
        if entry.sync:
            try:
                os.fsync(file.fd)
            except OSError as error:
                self._reporter.unsynced(file.path, error)

    def _is_as_left(self, entry: _Entry) -> bool:
        """Return whether the file is as the last record left it. Two cheap calls show that in the usual case."""
        file = self._file
        if file is None or entry.start >= 0 or self._unreported or file.torn:
            return False
        if not self._valid_from <= time.time() < self._valid_until or self._end + len(entry.data) > self._max_bytes:
            return False
        try:
            # No other process writes the file. If the size has changed, other code closed the descriptor, as daemons
            # do, and its number now belongs to another file.
            return os.lseek(file.fd, 0, os.SEEK_END) == self._end
        except OSError:
            return False

    def _ready(self, entry: _Entry) -> tuple[LogFile, int]:
        """Return the file for an entry, and its size."""
        now = time.time()
        size = self._check_file()
        if self._file is not None and 0 <= entry.start < size:
            return self._file, size  # a part of it is there, and the rest follows
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
        self._valid_from, self._valid_until = now, min(now + CHECK_EVERY, until)
        return self._file, size

    def _check_file(self) -> int:
        """Return the size of the file. Leave it and return 0 if it was replaced or has lost its name.

        A sidecar without leases collects a file that has been quiet for long, and a user may move one.
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
        """Close the file. A record that it contains in part is written to the next file in full."""
        file, self._file = self._file, None
        if self._queue:
            self._queue[0].start = -1
        if file is not None:
            file.close()

    def _fail(self, error: OSError) -> None:
        if not self._failing:
            self._failing = True
            self._reporter.failed(self.path or self._files.directory, error)
        self._give_up()

    def _give_up(self) -> None:
        """Report the records that cannot be written. One that was written in part stays in the queue."""
        kept = 1 if self._queue and self._is_begun(self._queue[0]) else 0
        while len(self._queue) > kept:
            entry = self._queue[kept]
            if entry.data and not entry.done:
                if not self._unreported:
                    self._since = time.time()
                self.lost += 1
                self._unreported += 1
                self._reporter.lost(entry.data)
            del self._queue[kept]

    def _is_begun(self, entry: _Entry) -> bool:
        if entry.start < 0 or self._file is None:
            return False
        with contextlib.suppress(OSError):
            return os.fstat(self._file.fd).st_size > entry.start
        return False


def _day_of(now: float) -> tuple[Date, float]:
    """Return the local day of a time, and the time when it ends."""
    at = time.localtime(now)
    end = time.mktime((at.tm_year, at.tm_mon, at.tm_mday + 1, 0, 0, 0, 0, 0, -1))
    return Date(at.tm_year, at.tm_mon, at.tm_mday), end
