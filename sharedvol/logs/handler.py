"""`ReplicaFileHandler`: logs of a replica of many processes, with rotation that loses nothing.

Nothing is ever renamed, cut or shared: each process has a file for itself (`sharedvol.logs.files`), puts each
record at its end by one write(2) without any buffer, and goes on in a file of another name when the day or the
file is over. So there is no moment at which two processes have to agree, and none that a kill could fall into.
"""

from __future__ import annotations

import codecs
import contextlib
import errno
import logging
import math
import sys
import weakref
from collections.abc import Iterator
from datetime import UTC, datetime

from sharedvol import forks
from sharedvol.arguments import size_of
from sharedvol.errors import describe
from sharedvol.identity import container_id
from sharedvol.logs.files import LogDirectory, LogFiles
from sharedvol.logs.names import LogNames
from sharedvol.logs.writer import LogWriter
from sharedvol.network import NetworkPolicy
from sharedvol.paths import PathLike

_NEVER = sys.maxsize


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
        max_bytes: a file has no more, unless a single record does; a number, or text such as ``"50M"``; 0 for no limit.
        at_midnight: begin another file each day, local time.
        encoding: one in which a line ends with the byte of ASCII.
        errors: what is done with what cannot be encoded, as for `open`.
        permissions: of new files, such as ``0o640`` or ``"0640"``; else ``0o666`` less the umask.
        sync_level: records of this level and above are on the disk when the call returns; None for none.
        level: as for every handler.
        allow_network: accept a network file system without a warning.
        strict: refuse one; None as the environment variable ``SHAREDVOL_STRICT`` says.

    Raises:
        IdentityError: nothing names this container; see `sharedvol.container_id`.
        InvalidNameError: ``name`` cannot be a part of a file name.
        LookupError: no such encoding.
        NetworkFileSystemError: the directory is on a network file system, and the handler is ``strict``.
        ValueError: an argument that cannot be used.
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
        # Here, and not with the first record: a warning that is logged would come back to this handler.
        place.check(NetworkPolicy(allow_network, strict))
        self._files = LogFiles(
            place,
            LogNames(name, container),
            _mode(permissions),
            durable=self._sync_level != _NEVER,
        )
        self._max_bytes, self._at_midnight = limit or math.inf, at_midnight
        self.encoding, self.errors = encoding, errors
        self._told = _StandardError(self)
        self._writer = self._new_writer()
        forks.track(self)

    @property
    def path(self) -> str | None:
        """The file that is written to; None before the first record, and when it was closed."""
        return self._writer.path

    @property
    def lost(self) -> int:
        """How many records of this process could not be written to a file."""
        return self._writer.lost

    def handle(self, record: logging.LogRecord) -> bool:
        """Write one record if the filters let it through."""
        forks.notice()  # before the handler's lock, which a thread of the parent may have held
        return super().handle(record)

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record; never raises because of the file."""
        try:
            data, sync = self.line(record), record.levelno >= self._sync_level
            if self._told.busy:
                self._told.back(data)
            else:
                self._writer.write(data, sync)
        except RecursionError:  # as in logging: see CPython issue 36272
            raise
        except Exception:
            self.handleError(record)

    def line(self, record: logging.LogRecord) -> bytes:
        """A record as it stands in the file."""
        return f"{self.format(record)}\n".encode(self.encoding, self.errors)

    def flush(self) -> None:
        """Finish what was begun. There is no buffer."""
        with self._locked():
            self._writer.drain()

    def close(self) -> None:
        """Close the file; a record that comes later opens it again."""
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
        return LogWriter(self._files, self._max_bytes, self._at_midnight, self._told)

    def renew(self) -> None:
        """In a forked child: begin with no file, at once.

        As long as a child has its parent's file open, a sidecar cannot tell that it is finished.
        """
        self.createLock()  # as logging does, where Python sees the fork
        before, self._told = self._writer, _StandardError(self)
        self._writer = self._new_writer()
        before.abandon()
        self._files.prepare()

    def __del__(self) -> None:
        # Not `close`, which takes the lock of logging itself: another thread may hold that and wait for this one.
        with contextlib.suppress(Exception):  # __init__ may have failed; the interpreter may be ending
            forks.notice()
            self._writer.close()

    def __repr__(self) -> str:
        level = logging.getLevelName(self.level)
        return f"<{type(self).__name__} {self.path or self._files.directory} ({level})>"


class _StandardError:
    """Takes what a handler cannot write; what cannot be put there either is lost, as nobody is left to tell.

    Attributes:
        busy: it is being written to, and what is logged meanwhile comes from there.
    """

    def __init__(self, handler: ReplicaFileHandler) -> None:
        self._encoding = handler.encoding
        self._line = weakref.WeakMethod(handler.line)  # a cycle would keep the file of a handler that was dropped
        self.busy = False

    def failed(self, path: str, error: OSError) -> None:
        self._say(f"cannot write {path!r}: {describe(error)}; {_hint(error)}; until then records follow here")

    def unsynced(self, path: str, error: OSError) -> None:
        self._say(f"cannot sync {path!r}: {describe(error)}; what was written last may be lost with a power cut")

    def lost(self, data: bytes) -> None:
        self._show(data.decode(self._encoding, "replace"))

    def back(self, data: bytes) -> None:
        """What was logged because standard error leads back to the log: to the one that the process began with."""
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
        except Exception:  # the handler was dropped, or its formatter wants what only the application's records have
            return f"sharedvol.logs: {text}\n".encode()

    def _say(self, text: str) -> None:
        self._show(f"sharedvol.logs: {text}\n")

    def _show(self, text: str) -> None:
        self.busy = True
        try:
            with contextlib.suppress(Exception):  # None, closed, or a pipe that nobody reads
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
