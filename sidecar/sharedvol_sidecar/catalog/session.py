"""The catalog's connection: opened when it is needed, closed after a failure, opened again by the next call."""

from __future__ import annotations

import contextlib
import functools
import os
import sqlite3
import stat
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import quote

import sqlalchemy as sa
from sqlalchemy.pool import NullPool

from sharedvol import FileLock, LockTimeout
from sharedvol.database import url as database_url
from sharedvol_sidecar.catalog import failures, indexes
from sharedvol_sidecar.catalog import schema as catalog_schema
from sharedvol_sidecar.catalog.pages import PageQueries
from sharedvol_sidecar.catalog.read_only import ReadOnlyFile, is_read_only
from sharedvol_sidecar.catalog.schema import ADDED, Statements
from sharedvol_sidecar.errors import CatalogError, ConfigError
from sharedvol_sidecar.fs.private import private_lock

T = TypeVar("T")

_PATIENCE: Final = 5
"""Seconds to wait for another process that writes."""
_LOGIN: Final = 10
_ANSWER: Final = 60
_ATTEMPTS: Final = 5
_TRANSIENT: Final = frozenset({1213, 1020})
"""A deadlock, which InnoDB resolves by undoing one transaction, and MariaDB's conflict of snapshots. Nothing was done,
so the transaction is repeated (MySQL manual, "Deadlocks in InnoDB")."""


class CatalogSession:
    """One connection of one process and one thread.

    A forked child opens its own connection at its first call and never uses its parent's.

    Args:
        url: as `read_url` returns it.
        create: create a missing catalog.
        frozen: read the file as it is, while no other process has it open.
    """

    def __init__(self, url: sa.URL, *, create: bool, frozen: bool = False) -> None:
        self._url, self._create, self._frozen = url, create, frozen
        self._opening: FileLock | None = None
        self._read_only: ReadOnlyFile | None = None
        self.path = Path(url.database or "") if url.drivername.startswith("sqlite") else None
        self.label = repr(str(self.path)) if self.path else database_url.label(url)
        self._connection: sa.Connection | None = None
        self._inherited: list[sa.Connection] = []
        self._pid = os.getpid()
        self._inode: tuple[int, int] | None = None
        self._waited_for_index = False
        try:
            self._engine = self._make_engine(_ANSWER)
        except ModuleNotFoundError as error:
            raise ConfigError(f"the driver of {database_url.scheme(url)} is not installed: {error}") from None
        except (sa.exc.ArgumentError, TypeError, ValueError):  # their texts may repeat the option's value
            raise ConfigError(f"the URL of catalog {self.label} has an option that cannot be used") from None
        self.statements = Statements(self._engine.dialect)
        self._indexes: frozenset[str] = frozenset()
        self.queries = PageQueries(self._engine.dialect, self._indexes)
        """The queries for the connection that `run` works on."""

    def run(self, work: Callable[[sa.Connection], T], what: str) -> T:
        """Call ``work`` with the connection and return its result. Repeat it where that is safe.

        Args:
            work: does everything or nothing, because it may be repeated.
            what: its verb in a message: "cannot ``what`` catalog …".

        Raises:
            CatalogError: it failed, with the reason and what to do.
        """
        for attempt in range(_ATTEMPTS):
            self._drop_stale()
            fresh = self._connection is None
            try:
                result = work(self._connected())
            except BaseException as error:
                # Closing the connection rolls back a transaction that is open.
                self.close()
                traceback.clear_frames(error.__traceback__)  # SQLAlchemy keeps the error in one: a cycle
                if self._is_worth_another(error, fresh) and attempt < _ATTEMPTS - 1:
                    continue
                ours = self._explain(error, what)
                if ours is None:
                    raise
                try:
                    raise ours from error
                finally:
                    del ours  # or the error and this frame keep each other alive
            if not self._moved_away():
                return result
            # Read again: this result is from a file that was moved away, or that changed while it was read.
        raise CatalogError(f"cannot {what} catalog {self.label}: it keeps changing; try again later")

    def add_indexes(self, progress: Callable[[], object]) -> None:
        """Create the missing indexes: see `indexes.add_indexes`.

        Args:
            progress: called about once a second meanwhile; a true value ends the wait.

        Raises:
            CatalogError: an index cannot be created.
        """
        missing = self.run(lambda connection: [name for name in ADDED if name not in self._indexes], "read")
        if not missing:
            return
        try:
            with self._index_lock(0) if self.path else contextlib.nullcontext():
                indexes.add_indexes(
                    self._engine if self.path else self._make_engine(indexes.LONGEST), missing, progress
                )
        except LockTimeout:
            pass  # another process creates them
        except Exception as error:
            ours = self._explain(error, "make an index of")
            if ours is None:
                raise
            raise ours from error
        finally:
            self.run(self._read_indexes, "read")

    def _index_lock(self, timeout: float) -> FileLock:
        return private_lock(f"{self.path}.index.lock", timeout)

    def _wait_for_index(self) -> bool:
        """Return whether another process creates an index, which locks SQLite's file. Wait a while for its end."""
        waited, self._waited_for_index = self._waited_for_index, False
        if self.path is None or not os.path.exists(f"{self.path}.index.lock"):
            return False
        try:
            with self._index_lock(0):
                return waited  # the other process may have ended just now
        except LockTimeout:
            self._waited_for_index = True
        with contextlib.suppress(LockTimeout), self._index_lock(_PATIENCE):
            pass
        return True

    @contextlib.contextmanager
    def transaction(self, connection: sa.Connection) -> Iterator[Any]:
        """Yield a cursor of the driver in a transaction that is durable after the block."""
        cursor = connection.connection.cursor()
        cursor.execute(self.statements.begin)
        yield cursor
        cursor.execute("COMMIT")
        cursor.close()

    def close(self) -> None:
        """Close the connection. The next `run` opens another."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(Exception):  # the connection may be closed already
                connection.invalidate()
            with contextlib.suppress(Exception):
                connection.close()
        opening, self._opening = self._opening, None
        if opening is not None:
            opening.release()

    def _drop_stale(self) -> None:
        if self._pid != os.getpid():
            # It is the parent's. Closing it here could end the parent's session or drop its locks.
            self._inherited += [self._connection] if self._connection is not None else []
            self._connection, self._pid = None, os.getpid()
        if self._moved_away():
            self.close()

    def _moved_away(self) -> bool:
        """Return whether the open file was renamed, or has changed while it was read without locks."""
        if self.path is None or self._connection is None:
            return False
        if self._read_only is not None and self._read_only.has_changed:
            return True
        return _inode(self.path) != self._inode

    def _connected(self) -> sa.Connection:
        if self._connection is None:
            if self.path is None:
                self._connect()
            elif self._frozen:
                self._connect_frozen(self.path)
            elif not self._create and is_read_only(self.path):
                self._connect_read_only(self.path)
            else:
                if not self._create and _inode(self.path) is None:
                    raise self._missing()
                # Two processes that create the file and its tables at once would find it locked, whatever the timeout.
                with private_lock(f"{self.path}.lock", _PATIENCE):
                    self._create_file(self.path)
                    self._inode = _inode(self.path)
                    self._connect()
        assert self._connection is not None
        return self._connection

    def _connect_frozen(self, path: Path) -> None:
        if _inode(path) is None:
            raise self._missing()
        opening = private_lock(f"{path}.lock", _PATIENCE)
        opening.acquire()
        self._opening = opening  # held until `close`, because nothing may change in the file
        if any(_size(f"{path}{end}") for end in ("-wal", "-journal")):
            raise CatalogError(f"catalog {self.label} is open elsewhere, or its process was killed: {failures.HELD}")
        self._connect_to_read(path)

    def _connect_read_only(self, path: Path) -> None:
        if _inode(path) is None:
            raise self._missing()
        self._read_only = ReadOnlyFile(path, _PATIENCE)
        self._engine = _engine_of(self._read_only.connect)
        self._connect_to_read(path)

    def _connect_to_read(self, path: Path) -> None:
        self._inode = _inode(path)
        self._connection = self._engine.connect()
        if not catalog_schema.check(self._connection, self.label):
            raise self._missing()
        self._read_indexes(self._connection)

    def _connect(self) -> None:
        try:
            connection = self._connection = self._engine.connect()
        except (TypeError, ValueError, AttributeError, LookupError):  # their texts may repeat an option's value
            raise ConfigError(
                f"the URL of catalog {self.label} has an option that {self._engine.dialect.driver} cannot use"
            ) from None
        if self.path is not None:
            for pragma in (f"journal_mode = {_journal(self.path)}", "synchronous = FULL"):
                connection.exec_driver_sql(f"PRAGMA {pragma}")
        else:
            # Without this, a value that is too long is cut (MySQL manual, "Server SQL Modes").
            connection.exec_driver_sql("SET SESSION sql_mode = 'TRADITIONAL'")
        if not catalog_schema.check(connection, self.label):
            if not self._create:
                raise self._missing()
            catalog_schema.create(connection)
        self._read_indexes(connection)

    def _read_indexes(self, connection: sa.Connection) -> None:
        self._indexes = catalog_schema.index_names(connection)
        self.queries = PageQueries(connection.dialect, self._indexes)

    def _create_file(self, path: Path) -> None:
        try:
            # An existing file is not opened: closing any descriptor of it drops SQLite's locks on it (fcntl(2)).
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
        except FileExistsError:
            if not stat.S_ISREG(os.lstat(path).st_mode):
                raise CatalogError(f"catalog {self.label} is not a regular file: remove it") from None

    def _missing(self) -> CatalogError:
        return CatalogError(f"there is no catalog {self.label}: name another with --catalog, or run `rebuild`")

    def _make_engine(self, answer: float) -> sa.Engine:
        if self._frozen and self.path is not None:
            file = f"file:{quote(os.fsencode(self.path))}?mode=ro&immutable=1"
            return _engine_of(functools.partial(sqlite3.connect, file, uri=True))
        arguments = self._arguments(answer)
        return sa.create_engine(self._url, poolclass=NullPool, isolation_level="AUTOCOMMIT", connect_args=arguments)

    def _arguments(self, answer: float) -> dict[str, Any]:
        if self.path is not None:
            return {"timeout": _PATIENCE}
        arguments: dict[str, Any] = {}
        if self._url.drivername.endswith("+pymysql"):
            waits = {"connect_timeout": _LOGIN, "read_timeout": answer, "write_timeout": answer}
            arguments = {name: seconds for name, seconds in waits.items() if name not in self._url.query}
            if self._url.password:
                arguments["password"] = str(self._url.password)
                database_url.encode_password(arguments)
        return arguments

    def _is_worth_another(self, error: BaseException, fresh: bool) -> bool:
        driver = failures.driver_error(self._engine.dialect, error)
        if driver is None:
            return False
        if driver.args and driver.args[0] in _TRANSIENT:
            return True
        if failures.sqlite_code(driver) == sqlite3.SQLITE_BUSY:
            return self._wait_for_index()
        # A server closes connections that were idle for long (wait_timeout). Only a statement shows that.
        return not fresh and self.path is None and self._engine.dialect.is_disconnect(driver, None, None)  # type: ignore[arg-type]

    def _explain(self, error: BaseException, what: str) -> CatalogError | None:
        begin = f"cannot {what} catalog {self.label}: "
        return failures.explain(error, begin, self._url, self.path, self._engine.dialect)


def _engine_of(connect: Callable[[], sqlite3.Connection]) -> sa.Engine:
    return sa.create_engine("sqlite://", creator=connect, poolclass=NullPool, isolation_level="AUTOCOMMIT")


def _journal(path: Path) -> str:
    """Return the journal mode: WAL, unless a full disk could then kill the process.

    SQLite maps the index of its WAL into memory and allocates its blocks by writing one byte of each 4,096. If blocks
    are smaller, some mapped bytes have no block, and on a full disk the kernel answers a write to them with SIGBUS.
    """
    return "WAL" if os.statvfs(path).f_bsize >= 4096 else "TRUNCATE"


def _size(path: str) -> int:
    try:
        return os.lstat(path).st_size
    except FileNotFoundError:
        return 0


def _inode(path: Path) -> tuple[int, int] | None:
    try:
        info = os.lstat(path)
    except FileNotFoundError:
        return None
    return info.st_dev, info.st_ino
