"""`ReplicaFileHandler`: logs of a replica of many processes, with rotation that loses nothing.

Nothing is ever renamed, cut or shared: each process has a file for itself (`sharedvol.log_files`), puts each
record at its end by one write(2) without any buffer, and goes on in a file of another name when the day or the
file is over. So there is no moment at which two processes have to agree, and none that a kill could fall into.
"""

from __future__ import annotations

import codecs
import contextlib
import errno
import logging
import math
import os
import sys
import time
import weakref
from collections import deque
from datetime import UTC, datetime
from datetime import date as Date

from sharedvol.errors import describe
from sharedvol.identity import container_id
from sharedvol.log_files import LogDirectory, LogFile, LogFiles, LogNames
from sharedvol.paths import PathLike

LOOK_EVERY = 1.0
"""Seconds after which a record first looks whether the file still has its name."""

_NEVER = sys.maxsize
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


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


class ReplicaFileHandler(logging.Handler):
    """Writes records to a replica's own log files, below a directory that replicas share.

    ::

        logging.config.dictConfig({
            "version": 1,
            "handlers": {
                "file": {
                    "class": "sharedvol.logs.ReplicaFileHandler",
                    "directory": "/shared/spool/{container}/logs",
                },
            },
            "root": {"handlers": ["file"], "level": "INFO"},
        })

    A file is opened by the first record. Each process of the replica has its own; see docs/logging.md. What
    cannot be written goes to standard error, and the log says so once it can be written again; nothing of that
    is raised.

    Args:
        directory: where the files are. ``{container}`` stands for the replica's name; from there on it is made
            where it is missing, and what is before that must exist.
        name: what the files' names begin with, to tell two handlers apart; None for R's form.
        max_bytes: a file has no more, unless a single record does; 0 for no limit.
        at_midnight: begin another file each day, local time.
        encoding: one in which a line ends with the byte of ASCII.
        errors: what is done with what cannot be encoded, as for `open`.
        permissions: of new files, such as ``0o640`` or ``"0640"``; else ``0o666`` less the umask.
        sync_level: records of this level and above are on the disk when the call returns; None for none.
        level: as for every handler.

    Raises:
        IdentityError: nothing names this container; see `sharedvol.container_id`.
        InvalidNameError: ``name`` cannot be a part of a file name.
        LookupError: no such encoding.
        ValueError: an argument that cannot be used.

    Attributes:
        lost: how many records of this process could not be written to a file.
    """

    def __init__(
        self,
        directory: PathLike,
        *,
        name: str | None = None,
        max_bytes: int = 50_000_000,
        at_midnight: bool = True,
        encoding: str = "utf-8",
        errors: str = "backslashreplace",
        permissions: int | str | None = None,
        sync_level: int | str | None = None,
        level: int | str = logging.NOTSET,
    ) -> None:
        super().__init__(level)
        codecs.lookup_error(errors)
        if "\n".encode(encoding) != b"\n":
            raise ValueError(f"encoding {encoding!r} does not end lines as ASCII does: use utf-8")
        if max_bytes < 0:
            raise ValueError(f"max_bytes is {max_bytes}: give a number of bytes, or 0 for no limit")
        container = container_id()
        self._directory = LogDirectory(directory, container)
        self._sync_level = _level(sync_level)
        self._files = LogFiles(
            self._directory, LogNames(name, container), _mode(permissions), self._sync_level != _NEVER
        )
        self._max_bytes, self._at_midnight = max_bytes or _NEVER, at_midnight
        self._encoding, self._errors = encoding, errors
        self._begin()
        _handlers.add(self)

    def _begin(self) -> None:
        """The state of a process that has written nothing."""
        self._pid = os.getpid()
        self._file: LogFile | None = None
        self._number = 1
        self._day: Date | None = None
        self._end = 0
        self._valid_from = self._valid_until = 0.0
        self._bytes = b""
        self._covered = 0
        self._queue: deque[_Entry] = deque()
        self._busy = self._telling = False
        self.lost = self._untold = 0
        self._problem = ""
        self._since = 0.0

    @property
    def path(self) -> str | None:
        """The file that the last record went to; None before the first."""
        return None if self._file is None else self._file.path

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record; never raises because of the file."""
        try:
            data = f"{self.format(record)}\n".encode(self._encoding, self._errors)
        except RecursionError:  # as in logging: see CPython issue 36272
            raise
        except Exception:
            self.handleError(record)
            return
        if self._telling:  # standard error leads back to us
            self.lost += 1
            return
        self._queue.append(_Entry(data, record.levelno >= self._sync_level))
        self._drain()

    def flush(self) -> None:
        """Finish what was begun. There is no buffer."""
        with contextlib.suppress(AttributeError):  # `Handler.__init__` failed
            self.acquire()
        try:
            self._drain()
        finally:
            self.release()

    def close(self) -> None:
        """Close the file; a record that comes later opens it again."""
        self.acquire()
        try:
            if self._untold:
                self._queue.append(_Entry(b"", False))
            self._drain()
            self._leave()
        finally:
            self.release()
        super().close()

    def _drain(self) -> None:
        # A signal handler, or a finalizer, may log in the middle of this: its record waits until ours is written.
        # And it may raise there: then the next call goes on with what is left in the queue.
        while self._queue and not self._busy:
            self._busy = True
            try:
                while self._queue:
                    self._write_first()
            except OSError as error:
                self._fail(error)
                return
            finally:
                self._busy = False

    def _write_first(self) -> None:
        entry = self._queue[0]
        if not entry.done:
            try:
                self._write(entry)
            except OSError as error:
                if self._file is None or error.errno in _FULL or entry.done:
                    raise
                self._leave()  # too long for a limit, or broken: perhaps another one can be written
                self._number += 1
                self._write(entry)
        if self._queue and self._queue[0] is entry:  # not in a child that was forked in the middle
            self._queue.popleft()

    def _write(self, entry: _Entry) -> None:
        file, size = self._file, self._end
        if file is None or not self._is_as_left(entry):
            file, size = self._ready(entry)
        if entry.start < 0:
            self._bytes, self._covered = entry.data, self._untold
            if file.torn or self._untold:
                self._bytes = (b"\n" if file.torn else b"") + self._note() + entry.data
            entry.start = size
        # How much of it is there the file itself tells, as it is ours alone: that holds after an exception, too.
        missing = self._bytes[size - entry.start :]
        while missing and not entry.done:
            written = os.write(file.fd, missing)
            if not written:
                raise OSError(errno.EIO, "nothing was written")
            missing = missing[written:]
        entry.done = True
        self._end = entry.start + len(self._bytes)
        if self._problem or self._covered or file.torn:
            file.torn, self._problem, self._untold = False, "", self._untold - self._covered
        if entry.sync:
            self._sync(file)

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
        if self._pid != os.getpid():  # a fork that Python did not see
            self._forget()
        now = time.time()
        size = self._look()
        if self._file is not None and 0 <= entry.start < size:
            return self._file, size  # a part of it is there: the rest belongs behind it
        entry.start = -1
        day, until = _day_of(now) if self._at_midnight else (None, math.inf)
        if day != self._day:
            self._leave()
            self._day, self._number = day, 1
        if self._file is not None and size and size + len(entry.data) > self._max_bytes:
            self._leave()
            self._number += 1
        if self._file is None:
            self._file = self._files.open(day, self._number, max(self._max_bytes - len(entry.data), 0))
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

    def _sync(self, file: LogFile) -> None:
        try:
            os.fsync(file.fd)
        except OSError as error:
            self._say(f"cannot sync {file.path!r}: {describe(error)}; the record may be lost with a power cut")

    def _fail(self, error: OSError) -> None:
        """Put on standard error what cannot be written. A record that was begun stays, to be finished."""
        if not self._problem:
            self._problem = describe(error)
            path = self._file.path if self._file is not None else self._directory.path
            self._say(f"cannot write {path!r}: {self._problem}; {_hint(error)}; until then, records follow here")
        if not self._untold:
            self._since = time.time()
        begun = self._queue[0] if self._queue and self._is_begun(self._queue[0]) else None
        while len(self._queue) > (begun is not None):
            entry = self._queue[begun is not None]
            if entry.data:
                self.lost += 1
                self._untold += 1
                self._show(entry.data)
            del self._queue[begun is not None]

    def _is_begun(self, entry: _Entry) -> bool:
        if entry.start < 0 or self._file is None:
            return False
        with contextlib.suppress(OSError):
            return os.fstat(self._file.fd).st_size > entry.start
        return False

    def _note(self) -> bytes:
        """What the log says of records that it does not have."""
        if not self._untold:
            return b""
        since = datetime.fromtimestamp(self._since, UTC).isoformat(timespec="seconds")
        text = f"{self._untold} records since {since} could not be written here and went to standard error"
        record = logging.LogRecord("sharedvol.logs", logging.ERROR, __file__, 0, text, None, None)
        try:
            return f"{self.format(record)}\n".encode(self._encoding, self._errors)
        except Exception:  # a formatter that wants what only the application's records have
            return f"sharedvol.logs: {text}\n".encode(self._encoding, "replace")

    def _say(self, text: str) -> None:
        self._show(f"sharedvol.logs: {text}\n".encode(self._encoding, "replace"))

    def _show(self, data: bytes) -> None:
        self._telling = True
        try:
            with contextlib.suppress(Exception):  # None, closed, or a pipe that nobody reads: nobody is left to tell
                sys.stderr.write(data.decode(self._encoding, "replace"))
                sys.stderr.flush()
        finally:
            self._telling = False

    def _forget(self) -> None:
        """In a forked child: the file and what was on its way into it are the parent's."""
        for entry in self._queue:
            entry.done = True
        file = self._file
        self._begin()
        if file is not None:
            file.close()

    def __repr__(self) -> str:
        level = logging.getLevelName(self.level)
        return f"<{type(self).__name__} {self.path or self._directory.path} ({level})>"


def _level(level: int | str | None) -> int:
    if level is None:
        return _NEVER
    if isinstance(level, int):
        return level
    known = logging.getLevelNamesMapping()
    if level not in known:
        raise ValueError(f"sync_level {level!r} is no level: give one of {', '.join(known)}, or a number")
    return known[level]


def _mode(permissions: int | str | None) -> int | None:
    """A mode; JSON and TOML have no octal numbers, so it may be digits in a string."""
    if isinstance(permissions, str):
        try:
            permissions = int(permissions, 8)
        except ValueError:
            raise ValueError(f'permissions {permissions!r} are no octal mode: give one such as "0640"') from None
    if permissions is not None and not (0 <= permissions <= 0o777 and permissions & 0o600 == 0o600):
        raise ValueError(f"permissions {permissions:#o} do not let their own user read and write: use 0o640")
    return permissions


def _day_of(now: float) -> tuple[Date, float]:
    """The local day of a time, and when it ends."""
    at = time.localtime(now)
    end = time.mktime((at.tm_year, at.tm_mon, at.tm_mday + 1, 0, 0, 0, 0, 0, -1))
    return Date(at.tm_year, at.tm_mon, at.tm_mday), end


def _hint(error: OSError) -> str:
    return {
        errno.ENOENT: "mount the volume, or create the directory before {container}",
        errno.ENOTDIR: "no symbolic link is followed there: remove what is in the way",
        errno.ELOOP: "no symbolic link is followed there: remove what is in the way",
        errno.EROFS: "mount the volume read-write",
        errno.EACCES: "give this user write permission on the directory",
        errno.ENOSPC: "free some space",
        errno.EDQUOT: "free some space, or raise the quota",
        errno.EMFILE: "raise the limit of open files",
    }.get(error.errno or 0, "see the reason")


_handlers: weakref.WeakSet[ReplicaFileHandler] = weakref.WeakSet()


def _after_fork() -> None:
    # At once, not with the child's first record: as long as a child has the parent's file open, a sidecar cannot
    # tell that it is finished. The locks of handlers are made anew by logging itself.
    for handler in list(_handlers):
        handler._forget()


os.register_at_fork(after_in_child=_after_fork)
