"""`ReplicaFileHandler`: the logs of a replica with several processes, with rotation that loses nothing.

No file is renamed, truncated or shared. Each process has its own file (`sharedvol.logs.files`), appends each record
with one write(2) and without a buffer, and starts a file with another name when the day ends or the file is full. So
processes never have to coordinate, and a kill cannot interrupt a rotation.
"""

from __future__ import annotations

import codecs
import contextlib
import logging
import math
import sys
import weakref
from collections.abc import Iterator
from datetime import UTC, datetime

from sharedvol import forks
from sharedvol.arguments import size_of
from sharedvol.errors import describe, remedy
from sharedvol.identity import container_id
from sharedvol.logs.files import LogDirectory, LogFiles
from sharedvol.logs.names import LogNames
from sharedvol.logs.writer import LogWriter
from sharedvol.network import NetworkPolicy
from sharedvol.paths import PathLike

_NEVER = sys.maxsize


class ReplicaFileHandler(logging.Handler):
    """A logging handler that writes to log files of this replica, below a directory that replicas share.

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

    The first record opens a file. Each process of the replica has its own; see docs/logging.md. The handler does not
    raise if a record cannot be written. It writes the record to standard error and adds a note to the log as soon as
    the log can be written again.

    Args:
        directory: the directory of the files. ``{container}`` is replaced by the replica's name. Missing directories
            are made from there on; those before it must exist.
        name: the beginning of the files' names, to distinguish two handlers; None for R's form.
        max_bytes: the maximum size of a file, unless a single record is larger; a number, or text such as ``"50M"``; 0
            for no limit.
        at_midnight: start another file each day, in local time.
        encoding: an encoding in which a line ends with the byte of ASCII.
        errors: how to handle characters that cannot be encoded, as for `open`.
        permissions: the mode of new files, such as ``0o640`` or ``"0640"``; by default ``0o666`` less the umask.
        sync_level: records of this level and above are on the disk when the call returns; None for none.
        level: as for every handler.
        allow_network: accept a network file system without a warning.
        strict: refuse a network file system; None as the environment variable ``SHAREDVOL_STRICT`` says.

    Raises:
        IdentityError: this container has no name of its own; see `sharedvol.container_id`.
        InvalidNameError: ``name`` cannot be part of a file name.
        LookupError: the encoding is unknown.
        NetworkFileSystemError: the directory is on a network file system, and the handler is ``strict``.
        ValueError: an argument cannot be used.
    """

    def __init__(  # noqa: PLR0913 - the keys of a logging configuration
        self,
        directory: PathLike,
        *,
        name: str | None = None,
        max_bytes: int | str = 50_000_000,
        at_midnight: bool = True,
        encoding: str = "utf-8",
        errors: str = "backslashreplace",
        permissions: int | str | None = None,
        sync_level: int | str | None = None,
        level: int | str = logging.NOTSET,
        allow_network: bool = False,
        strict: bool | None = None,
    ) -> None:
        super().__init__(level)
        codecs.lookup_error(errors)
        if "\n".encode(encoding) != b"\n":
            raise ValueError(f"encoding {encoding!r} does not end lines as ASCII does: use utf-8")
        limit = size_of(max_bytes, "max_bytes")
        if limit < 0:
            raise ValueError(f"max_bytes is {max_bytes}: give a number of bytes, or 0 for no limit")
        container = container_id()
        self._sync_level = _level(sync_level)
        place = LogDirectory(directory, container)
        # Not with the first record, because a warning that is logged would come back to this handler.
        place.check(NetworkPolicy(allow_network, strict))
        self._files = LogFiles(
            place,
            LogNames(name, container),
            _mode(permissions),
            durable=self._sync_level != _NEVER,
        )
        self._max_bytes, self._at_midnight = limit or math.inf, at_midnight
        self.encoding, self.errors = encoding, errors
        self._reporter = _StandardError(self)
        self._writer = self._new_writer()
        forks.track(self)

    @property
    def path(self) -> str | None:
        """The current file; None before the first record and after `close`."""
        return self._writer.path

    @property
    def lost(self) -> int:
        """The number of records of this process that could not be written to a file."""
        return self._writer.lost

    def handle(self, record: logging.LogRecord) -> bool:
        """Write one record if it passes the filters."""
        forks.notice()  # before the handler's lock, which a thread of the parent may have held
        return super().handle(record)

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record. Errors of the file are not raised."""
        try:
            data, sync = self.line(record), record.levelno >= self._sync_level
            if self._reporter.busy:
                self._reporter.echo(data)
            else:
                self._writer.write(data, sync)
        except RecursionError:  # as in logging: see CPython issue 36272
            raise
        except Exception:
            self.handleError(record)

    def line(self, record: logging.LogRecord) -> bytes:
        """Return a record as it is written to the file."""
        return f"{self.format(record)}\n".encode(self.encoding, self.errors)

    def flush(self) -> None:
        """Finish a record that was written in part. There is no buffer."""
        with self._locked():
            self._writer.drain()

    def close(self) -> None:
        """Close the file. A later record opens it again."""
        with self._locked():
            self._writer.close()
        super().close()

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        forks.notice()
        self.acquire()
        try:
            yield
        finally:
            self.release()

    def _new_writer(self) -> LogWriter:
        return LogWriter(self._files, self._max_bytes, self._at_midnight, self._reporter)

    def renew(self) -> None:
        """Close the parent's file in a forked child, at once.

        While a child has its parent's file open, a sidecar cannot see that the file is finished.
        """
        self.createLock()  # logging does this only if Python sees the fork
        before, self._reporter = self._writer, _StandardError(self)
        self._writer = self._new_writer()
        before.abandon()
        self._files.prepare()

    def __del__(self) -> None:
        # Not `close`, which takes the lock of logging: another thread may hold that lock and wait for this one.
        with contextlib.suppress(Exception):  # __init__ may have failed, or the interpreter is ending
            forks.notice()
            self._writer.close()

    def __repr__(self) -> str:
        level = logging.getLevelName(self.level)
        return f"<{type(self).__name__} {self.path or self._files.directory} ({level})>"


class _StandardError:
    """Standard error, for records that a handler cannot write and for its own errors. Its failures are ignored.

    Attributes:
        busy: whether it is being written to. Records that are logged meanwhile come from there.
    """

    def __init__(self, handler: ReplicaFileHandler) -> None:
        self._encoding = handler.encoding
        self._line = weakref.WeakMethod(handler.line)  # a reference cycle would keep a dropped handler's file open
        self.busy = False

    def failed(self, path: str, error: OSError) -> None:
        self._say(f"cannot write {path!r}: {describe(error)}; {_hint(error)}; until then, records go to standard error")

    def unsynced(self, path: str, error: OSError) -> None:
        self._say(f"cannot sync {path!r}: {describe(error)}; the last records may be lost in a power cut")

    def lost(self, data: bytes) -> None:
        self._show(data.decode(self._encoding, "replace"))

    def echo(self, data: bytes) -> None:
        """Write a record that came from standard error, which leads to the log, to the original standard error."""
        with contextlib.suppress(Exception):
            print(data.decode(self._encoding, "replace"), end="", file=sys.__stderr__, flush=True)

    def note(self, lost: int, since: float) -> bytes:
        begin = datetime.fromtimestamp(since, UTC).isoformat(timespec="seconds")
        text = f"{lost} records since {begin} could not be written here and went to standard error"
        record = logging.LogRecord("sharedvol.logs", logging.ERROR, __file__, 0, text, None, None)
        try:
            line = self._line()
            assert line is not None
            return line(record)
        except Exception:  # the handler was dropped, or its formatter needs attributes that this record lacks
            return f"sharedvol.logs: {text}\n".encode()

    def _say(self, text: str) -> None:
        self._show(f"sharedvol.logs: {text}\n")

    def _show(self, text: str) -> None:
        self.busy = True
        try:
            with contextlib.suppress(Exception):  # None, closed, or a pipe without a reader
                sys.stderr.write(text)
                sys.stderr.flush()
        finally:
            self.busy = False


def _level(level: int | str | None) -> int:
    if level is None:
        return _NEVER
    if isinstance(level, int):
        return level
    known = logging.getLevelNamesMapping()
    if level not in known:
        raise ValueError(f"sync_level {level!r} is not a level: use one of {', '.join(known)}, or a number")
    return known[level]


def _mode(permissions: int | str | None) -> int | None:
    """Return a file mode. It may be a string of octal digits, because JSON and TOML have no octal numbers."""
    if isinstance(permissions, str):
        try:
            permissions = int(permissions, 8)
        except ValueError:
            raise ValueError(f'permissions {permissions!r} is not an octal mode: use one such as "0640"') from None
    if permissions is not None and not (0 <= permissions <= 0o777 and permissions & 0o600 == 0o600):
        raise ValueError(f"permissions {permissions:#o} do not allow the owner to read and write: use 0o640")
    return permissions


def _hint(error: OSError) -> str:
    return remedy(
        error,
        ENOENT="mount the volume, or create the directory before {container}",
        ENOTDIR="remove what has its name; no symbolic link is followed",
        ELOOP="remove the symbolic link; no symbolic link is followed",
        EACCES="give user {user} write access to the directory",
    )
