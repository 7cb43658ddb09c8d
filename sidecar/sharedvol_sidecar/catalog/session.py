"""The catalog's connection: made when it is needed, given up after a failure, made again by the next call."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import re
import sqlite3
import stat
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import quote

import sqlalchemy as sa
from sqlalchemy.pool import NullPool

from sharedvol import FileLock, LockError, LockTimeout
from sharedvol.database import url as database_url
from sharedvol.errors import describe
from sharedvol_sidecar.catalog import indexes
from sharedvol_sidecar.catalog import schema as catalog_schema
from sharedvol_sidecar.catalog.pages import PageQueries
from sharedvol_sidecar.catalog.read_only import ReadOnlyFile, is_read_only
from sharedvol_sidecar.catalog.schema import ADDED, Statements
from sharedvol_sidecar.errors import FULL, CatalogError, ConfigError, errno_of
from sharedvol_sidecar.fs.private import private_lock

T = TypeVar("T")

_PATIENCE: Final = 5
"""Seconds to wait for another process that writes."""
_LOGIN: Final = 10
_ANSWER: Final = 60
_ATTEMPTS: Final = 5
_AGAIN: Final = frozenset({1213, 1020})
"""A deadlock, which InnoDB resolves by undoing one transaction, and MariaDB's conflict of snapshots: not errors of
ours, and nothing was done (MySQL manual, "Deadlocks in InnoDB")."""

_NEEDED_INODES: Final = 8
_NEEDED: Final = 1 << 20
"""Bytes without which a disk is full for SQLite. Some file systems keep the last blocks for themselves."""

_HELD: Final = "another process holds it: look for one that hangs"
_DAMAGED: Final = "the file is damaged: stop the sidecars, move {path}* away, and run `rebuild`"
_FORBIDDEN: Final = "make it and its directory writable for the sidecar's user"
_REMEDIES: Final = {
    sqlite3.SQLITE_FULL: "free some space; what was to be recorded is tried again",
    sqlite3.SQLITE_BUSY: _HELD,
    sqlite3.SQLITE_LOCKED: _HELD,
    sqlite3.SQLITE_CORRUPT: _DAMAGED,
    sqlite3.SQLITE_NOTADB: _DAMAGED,
    sqlite3.SQLITE_READONLY: _FORBIDDEN,
    sqlite3.SQLITE_PERM: _FORBIDDEN,
    sqlite3.SQLITE_CANTOPEN: "see that its directory exists and can be written by the sidecar's user",
    sqlite3.SQLITE_IOERR: "see that its disk works and has space",
}


def read_url(text: str, *, options: bool = True) -> sa.URL:
    """Return the URL of a catalog, with the driver.

    Args:
        text: the URL.
        options: check its options, too.

    Raises:
        ConfigError: it is not a URL, names a database that cannot hold a catalog, or has an option that the driver
            does not take. The text is not repeated, because it may hold a password.
    """
    if not text.startswith("sqlite") and text.count("@") > 1:
        raise ConfigError("it has '@' more than once: in a name, a password or an option write %40 for it")
    try:
        url = database_url.read_url(text)
        # SQLAlchemy's mysql asks which of the two the server is.
        url = url.set(drivername=re.sub("^mariadb(?=[+]|$)", "mysql", url.drivername))
        dialect: Any = database_url.dialect_class(url)
    except ValueError as error:
        raise ConfigError(str(error).replace("not a database URL", "the catalog's URL is none")) from None
    if dialect.is_async or dialect.name not in ("sqlite", "mysql"):
        raise ConfigError(f"a catalog cannot be in {database_url.scheme(url)}: say mysql:// or sqlite:///")
    if dialect.name == "sqlite":
        if not url.database or url.database == ":memory:" or url.database.startswith("file:"):
            raise ConfigError("the catalog's SQLite URL names no file: say sqlite:////path/to/catalog.db")
        url = url.set(database=os.path.abspath(url.database))
    elif not url.database:
        raise ConfigError("the catalog's URL names no database: say mysql://user@host/database")
    if not options:
        return url
    try:
        database_url.check_options(url, dialect(dbapi=dialect.import_dbapi()))
    except ModuleNotFoundError as error:
        raise ConfigError(f"the driver of {database_url.scheme(url)} is not installed: {error}") from None
    except ValueError as error:
        raise ConfigError(str(error)) from None
    return url


def check_url(text: str, *, options: bool = True) -> None:
    """Check the setting ``catalog``: a URL, empty for the file in the destination, or ``none``.

    Raises:
        ConfigError: as `read_url`.
    """
    if text not in ("", "none"):
        read_url(text, options=options)


class CatalogSession:
    """One connection of one process and one thread.

    A forked child gets a connection of its own at its first call, and never speaks on its parent's.

    Args:
        url: as `read_url` gives it.
        create: whether a catalog that is missing is made.
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
        except (sa.exc.ArgumentError, TypeError, ValueError):  # whose texts may repeat the option's value
            raise ConfigError(f"the URL of catalog {self.label} has an option that cannot be used") from None
        self.statements = Statements(self._engine.dialect)
        self._indexes: frozenset[str] = frozenset()
        self.queries = PageQueries(self._engine.dialect, self._indexes)
        """Made for the connection that `run` works on."""

    def run(self, work: Callable[[sa.Connection], T], what: str) -> T:
        """What ``work`` returns; done again where that is safe, so it must be all or nothing.

        Raises:
            CatalogError: "cannot ``what`` catalog …", why, and what to do.
        """
        for attempt in range(_ATTEMPTS):
            self._leave_stale()
            fresh = self._connection is None
            try:
                result = work(self._connected())
            except BaseException as error:
                # Whatever was under way ends with the connection: nothing of a transaction stays.
                self.close()
                traceback.clear_frames(error.__traceback__)  # SQLAlchemy keeps the error in one: a cycle
                if self._worth_another(error, fresh) and attempt < _ATTEMPTS - 1:
                    continue
                ours = self._in_words(error, what)
                if ours is None:
                    raise
                try:
                    raise ours from error
                finally:
                    del ours  # or the error and this frame keep each other alive
            if not self._moved_away():
                return result
            # The file that was moved away is not looked at again, and what was read while it changed is not whole.
        raise CatalogError(f"cannot {what} catalog {self.label}: it changes all the time; try again later")

    def add_indexes(self, progress: Callable[[], object]) -> None:
        """Make the indexes that are missing: see `add_indexes`.

        Args:
            progress: called about once a second meanwhile; a true value ends the wait.

        Raises:
            CatalogError: an index cannot be made.
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
            pass  # another process makes them
        except Exception as error:
            ours = self._in_words(error, "make an index of")
            if ours is None:
                raise
            raise ours from error
        finally:
            self.run(self._look_at_indexes, "read")

    def _index_lock(self, timeout: float) -> FileLock:
        return private_lock(f"{self.path}.index.lock", timeout)

    def _indexing(self) -> bool:
        """Whether another process makes an index, which locks SQLite's file; waits a while until it is done."""
        waited, self._waited_for_index = self._waited_for_index, False
        if self.path is None or not os.path.exists(f"{self.path}.index.lock"):
            return False
        try:
            with self._index_lock(0):
                return waited  # it may have ended just now
        except LockTimeout:
            self._waited_for_index = True
        with contextlib.suppress(LockTimeout), self._index_lock(_PATIENCE):
            pass
        return True

    @contextlib.contextmanager
    def transaction(self, connection: sa.Connection) -> Iterator[Any]:
        """A cursor of the driver, in a transaction that is durable when the block has ended."""
        cursor = connection.connection.cursor()
        cursor.execute(self.statements.begin)
        yield cursor
        cursor.execute("COMMIT")
        cursor.close()

    def close(self) -> None:
        """Give the connection up; the next `run` makes another."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(Exception):  # it may be gone already, which is what we want
                connection.invalidate()
            with contextlib.suppress(Exception):
                connection.close()
        opening, self._opening = self._opening, None
        if opening is not None:
            opening.release()

    def _leave_stale(self) -> None:
        if self._pid != os.getpid():
            # The parent's: closing it here could tell the server, or SQLite, that the parent is done.
            self._inherited += [self._connection] if self._connection is not None else []
            self._connection, self._pid = None, os.getpid()
        if self._moved_away():
            self.close()

    def _moved_away(self) -> bool:
        """Whether the file that is open has another name by now, or has changed where it must not."""
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
                # Two that make the file and its tables at once would find it locked, whatever the time-out.
                with private_lock(f"{self.path}.lock", _PATIENCE):
                    self._make_file(self.path)
                    self._inode = _inode(self.path)
                    self._connect()
        assert self._connection is not None
        return self._connection

    def _connect_frozen(self, path: Path) -> None:
        if _inode(path) is None:
            raise self._missing()
        opening = private_lock(f"{path}.lock", _PATIENCE)
        opening.acquire()
        self._opening = opening  # until `close`: nothing may change in the file
        if any(_size(f"{path}{end}") for end in ("-wal", "-journal")):
            raise CatalogError(f"catalog {self.label} is open elsewhere, or its process was killed: {_HELD}")
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
        self._look_at_indexes(self._connection)

    def _connect(self) -> None:
        try:
            connection = self._connection = self._engine.connect()
        except (TypeError, ValueError, AttributeError, LookupError):  # whose texts may repeat an option's value
            raise ConfigError(
                f"the URL of catalog {self.label} has an option that {self._engine.dialect.driver} cannot use"
            ) from None
        if self.path is not None:
            for pragma in (f"journal_mode = {_journal(self.path)}", "synchronous = FULL"):
                connection.exec_driver_sql(f"PRAGMA {pragma}")
        else:
            # Else a value that is too long is cut (MySQL manual, "Server SQL Modes").
            connection.exec_driver_sql("SET SESSION sql_mode = 'TRADITIONAL'")
        if not catalog_schema.check(connection, self.label):
            if not self._create:
                raise self._missing()
            catalog_schema.create(connection)
        self._look_at_indexes(connection)

    def _look_at_indexes(self, connection: sa.Connection) -> None:
        self._indexes = catalog_schema.index_names(connection)
        self.queries = PageQueries(connection.dialect, self._indexes)

    def _make_file(self, path: Path) -> None:
        try:
            # Never opened if it is there: closing any descriptor of a file drops SQLite's locks on it (fcntl(2)).
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
        except FileExistsError:
            if not stat.S_ISREG(os.lstat(path).st_mode):
                raise CatalogError(
                    f"catalog {self.label} is no regular file: somebody put it there; remove it"
                ) from None

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

    def _worth_another(self, error: BaseException, fresh: bool) -> bool:
        driver = _driver_error(self._engine, error)
        if driver is None:
            return False
        if driver.args and driver.args[0] in _AGAIN:
            return True
        if getattr(driver, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY:
            return self._indexing()
        # A server ends what was idle for long (wait_timeout): that is found out by asking.
        return not fresh and self.path is None and self._engine.dialect.is_disconnect(driver, None, None)  # type: ignore[arg-type]

    def _in_words(self, error: BaseException, what: str) -> CatalogError | None:
        ours = self._worded(error, f"cannot {what} catalog {self.label}: ")
        if ours is not None and self.path is not None:
            ours.full = _is_full(self.path, error)
        return ours

    def _worded(self, error: BaseException, begin: str) -> CatalogError | None:
        if isinstance(error, LockError):
            return CatalogError(f"{begin}{error}")
        if isinstance(error, OSError) and not isinstance(error, CatalogError):
            remedy = "free some space" if error.errno == errno.ENOSPC else "see that its directory can be written"
            words = describe(error) if self.path else database_url.redact(str(error), self._url)
            return CatalogError(f"{begin}{words}; {remedy if self.path else 'see that the server runs'}")
        driver = _driver_error(self._engine, error)
        if driver is None:
            if not isinstance(error, sa.exc.SQLAlchemyError | RuntimeError):
                return None
            return CatalogError(f"{begin}{database_url.redact(str(error), self._url)}")
        if self.path is None:
            words = ", ".join(str(part) for part in driver.args[1:]) or str(driver) or "the connection is closed"
            words = database_url.redact(words, self._url)
            code = f" (error {driver.args[0]})" if driver.args and isinstance(driver.args[0], int) else ""
            return CatalogError(f"{begin}{words}{code}; see that the server runs and that the account may write there")
        number = getattr(driver, "sqlite_errorcode", 0) & 0xFF
        remedy = _REMEDIES.get(number, "if it does not help to try again, move {path}* away and run `rebuild`")
        return CatalogError(f"{begin}{driver}; {remedy.format(path=self.path)}")


def _is_full(path: Path, error: BaseException) -> bool:
    """Return whether a failure of the catalog comes from its disk's having no room. SQLite mostly does not tell."""
    if errno_of(error) in FULL:
        return True
    code = getattr(getattr(error, "orig", error), "sqlite_errorcode", 0) & 0xFF
    if code not in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN):
        return False
    try:
        free = os.statvfs(path.parent)
    except OSError:
        return False
    without_inodes = free.f_files > 0 and free.f_favail < _NEEDED_INODES
    return code == sqlite3.SQLITE_FULL or without_inodes or free.f_bavail * free.f_frsize < _NEEDED


def _driver_error(engine: sa.Engine, error: BaseException) -> BaseException | None:
    if isinstance(error, sa.exc.DBAPIError):
        return error.orig
    return error if isinstance(error, engine.dialect.loaded_dbapi.Error) else None


def _engine_of(connect: Callable[[], sqlite3.Connection]) -> sa.Engine:
    return sa.create_engine("sqlite://", creator=connect, poolclass=NullPool, isolation_level="AUTOCOMMIT")


def _journal(path: Path) -> str:
    """WAL, where a full disk cannot kill us by it.

    SQLite maps the index of its WAL and writes one byte into each 4,096 of it to have their blocks. Where
    blocks are smaller, what is mapped may have none, and on a full disk the kernel answers a write with SIGBUS.
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
