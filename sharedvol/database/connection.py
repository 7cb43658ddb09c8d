"""One connection to a database server, which is opened once, takes plain SQL, and is never reopened.

Locks and migrations need what a pool hides: the session that holds a lock. So this uses SQLAlchemy's dialects to reach
the driver (PEP 249), without SQLAlchemy's pool and transactions. Any driver that SQLAlchemy knows for the server works.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final

from sharedvol.database import url as database_url
from sharedvol.database.driver_errors import translated
from sharedvol.errors import DatabaseError

if TYPE_CHECKING:
    from sqlalchemy import URL, Connection, Engine
    from sqlalchemy.engine import Dialect

    Target = str | URL | Engine | Connection
    """What names a database."""

_LOGIN_SECONDS: Final = 10
# Drivers that take these keywords, which save a round trip.
_AUTOCOMMIT_AT_CONNECT: Final = ("pymysql", "mysqldb", "mysqlconnector")
_FLAGS_AT_CONNECT: Final = ("pymysql", "mysqldb")


class Database:
    """A connection of its own, in autocommit mode.

    In autocommit mode every query sees what others have committed. Within a transaction it would see the snapshot of
    the first query (MySQL manual, "Consistent Nonlocking Reads").

    Attributes:
        label: the name of the database for messages, without the password.
        kind: ``mysql`` (also for MariaDB) or ``sqlite``.
        home: the schema that the session began with, once it is known.
        owned: `close` ends the session. The owner of an SQLAlchemy ``Connection`` closes it.
    """

    def __init__(
        self, raw: Any, dialect: Dialect, label: str, *, owned: bool, again: Callable[[], Database] | None = None
    ) -> None:
        self._raw, self._dialect, self.owned, self._again = raw, dialect, owned, again
        self._pid = os.getpid()
        self.label = label
        self.home: str | None = None
        self.kind = "mysql" if dialect.name in ("mysql", "mariadb") else dialect.name

    @classmethod
    def open(cls, target: Target, *, patience: float | None = None) -> Database:
        """Connect to ``target``. An SQLAlchemy ``Connection`` is used as it is and not closed.

        Args:
            target: the database.
            patience: seconds to wait for each answer; None for no limit, because a migration may take long. It applies
                to URLs with PyMySQL only. There the log-in always has a limit.

        Raises:
            DatabaseError: it cannot be reached, refuses the log-in, or its packages are missing.
            ValueError: ``target`` is not a URL, or names an asynchronous driver.
        """
        try:
            import sqlalchemy
        except ModuleNotFoundError as error:
            raise DatabaseError(database_url.NOT_INSTALLED) from error
        if isinstance(target, sqlalchemy.Connection):
            return cls._from_connection(target)
        if isinstance(target, sqlalchemy.Engine):
            return cls._from_engine(target)
        url = database_url.read_url(target)
        dialect_class = database_url.dialect_class(url)
        if dialect_class.is_async:
            raise ValueError(f"{database_url.scheme(url)} is an asynchronous driver: use mysql:// instead")
        try:
            dialect = dialect_class(dbapi=dialect_class.import_dbapi())
        except ModuleNotFoundError as error:
            remedy = "; install sharedvol[mysql]" if url.drivername.endswith("+pymysql") else ""
            kind = database_url.scheme(url)
            raise DatabaseError(f"the driver of {kind} is not installed: {error}{remedy}") from error
        database_url.check_options(url, dialect)
        return cls._connect(url, dialect, patience)

    @classmethod
    def _connect(cls, url: URL, dialect: Dialect, patience: float | None) -> Database:
        label = database_url.label(url)
        try:
            arguments, options = dialect.create_connect_args(url)
        except Exception:  # from a dialect whose options were not checked before
            raise ValueError(f"the URL of {label} has an option that cannot be used") from None
        if dialect.driver in _AUTOCOMMIT_AT_CONNECT:
            options.setdefault("autocommit", True)
        if dialect.driver in _FLAGS_AT_CONNECT:
            # The stock clients set it as well. A migration's statement and its marks then travel in one packet.
            options["client_flag"] = options.get("client_flag", 0) | (1 << 16)  # CLIENT_MULTI_STATEMENTS
        if dialect.driver == "pymysql":
            database_url.encode_password(options)
        impatient = dialect.driver == "pymysql" and "read_timeout" not in options
        if impatient:
            # A server may accept the connection and stay silent. This also limits PyMySQL's wait for the greeting.
            options["read_timeout"] = patience or _LOGIN_SECONDS
        if dialect.name == "sqlite":
            options["isolation_level"] = None  # autocommit, whatever the version of Python
        with translated(dialect, None, f"cannot connect to {label}", url):
            try:
                raw = dialect.connect(*arguments, **options)
            except (TypeError, ValueError, AttributeError, LookupError):
                raise ValueError(f"the URL of {label} has an option that {dialect.driver} cannot use") from None
        if impatient and patience is None:
            raw._read_timeout = None  # the log-in is over
        again = functools.partial(cls._connect, url, dialect, _LOGIN_SECONDS)
        return cls(raw, dialect, label, owned=True, again=again)._in_autocommit()

    @classmethod
    def _from_engine(cls, engine: Engine, other: Any = None) -> Database:
        import sqlalchemy

        if engine.dialect.is_async:
            raise ValueError(f"{engine.dialect.driver} is an asynchronous driver: use an engine with a synchronous one")
        label = database_url.label(engine.url)
        with translated(engine.dialect, None, f"cannot connect to {label}", engine.url):
            try:
                # A new pool of the same kind. The engine's own may be exhausted by threads that wait for this one, and
                # has the parent's connections in a forked child.
                pooled = engine.pool.recreate().connect()
                raw = pooled.driver_connection
                pooled.detach()  # the pool must not give a session that holds a lock to other code
            except sqlalchemy.exc.DBAPIError as error:
                if error.orig is None:
                    raise
                raise error.orig from error
        if raw is other is not None:
            raise DatabaseError(f"the engine of {label} has one connection only, and a second one is needed")
        return cls(raw, engine.dialect, label, owned=True, again=cls._again_on(engine, raw))._in_autocommit()

    @classmethod
    def _again_on(cls, engine: Engine, raw: Any) -> Callable[[], Database]:
        return functools.partial(cls._from_engine, engine, raw)

    @classmethod
    def _from_connection(cls, connection: Connection) -> Database:
        import sqlalchemy

        engine = connection.engine
        label = database_url.label(engine.url)
        try:
            raw = connection.connection.driver_connection
        except sqlalchemy.exc.SQLAlchemyError as error:
            raise DatabaseError(f"cannot use the connection to {label}: {error}", lost=True) from error
        return cls(raw, engine.dialect, label, owned=False, again=cls._again_on(engine, raw))

    def another(self) -> Database:
        """Open a second connection to the same database, in autocommit mode. The caller closes it.

        Raises:
            DatabaseError: there is no second connection.
        """
        if self._again is None:
            raise DatabaseError(f"there is no second connection to {self.label}")
        return self._again()

    def _in_autocommit(self) -> Database:
        try:
            if self._dialect.name != "sqlite" or self._raw.isolation_level is not None:
                with translated(self._dialect, self._raw, f"cannot use {self.label}"):
                    self._dialect.set_isolation_level(self._raw, "AUTOCOMMIT")
        except BaseException:
            self.close()
            raise
        return self

    def query(self, sql: str, **values: Any) -> list[tuple[Any, ...]]:
        """Return the rows of ``sql``, which names ``values`` as ``:name``."""
        with self._cursor(sql, values) as cursor:
            return [tuple(row) for row in cursor.fetchall()]

    def change(self, sql: str, **values: Any) -> int:
        """Run ``sql``, which names ``values`` as ``:name``. Return how many rows it matched or inserted."""
        with self._cursor(sql, values) as cursor:
            return int(cursor.rowcount)

    def send(self, text: str) -> Iterator[None]:
        """Send ``text`` as it is. Yield once for each result of the server, until all are read.

        A server continues after the first result, and an error in a later one appears only when that is read.
        """
        with self._errors_translated():
            cursor = self._raw.cursor()
        try:
            with self._errors_translated():
                cursor.execute(text)  # without arguments no driver replaces % or ? in it
            yield
            if not hasattr(cursor, "nextset"):
                return
            while True:
                with self._errors_translated():
                    more = cursor.nextset()
                if not more:
                    return
                yield
        finally:
            with contextlib.suppress(Exception), self._errors_translated():  # a broken connection cannot close a cursor
                cursor.close()  # reads the remaining results

    def run(self, text: str) -> None:
        """Send ``text`` and read all results."""
        for _ in self.send(text):
            pass

    @property
    def driver_session(self) -> int | None:
        """The session's id that the driver got when it connected, if the driver keeps it."""
        number = getattr(self._raw, "thread_id", None) or getattr(self._raw, "connection_id", None)
        number = number() if callable(number) else number
        if isinstance(number, tuple):
            number = number[0]
        return number if isinstance(number, int) else None

    @property
    def read_timeout(self) -> float | None:
        """Seconds after which the driver gives up on a silent server, if it reports that."""
        seconds = getattr(self._raw, "_read_timeout", None)  # PyMySQL
        return float(seconds) if isinstance(seconds, int | float) else None

    @property
    def raw(self) -> Any:
        """The driver's connection."""
        return self._raw

    @property
    def is_ours(self) -> bool:
        """Whether this process opened the connection. A forked child must not use its parent's."""
        return os.getpid() == self._pid

    @contextlib.contextmanager
    def sqlalchemy(self) -> Iterator[Connection]:
        """Yield an SQLAlchemy ``Connection`` on this session, with SQLAlchemy's transactions."""
        import sqlalchemy
        from sqlalchemy.pool import StaticPool

        driver = f"{self._dialect.name}+{self._dialect.driver}"
        engine = sqlalchemy.create_engine(
            f"{driver}://", creator=lambda: self._raw, poolclass=StaticPool, pool_reset_on_return=None
        )
        self._set_autocommit(False)
        try:
            with engine.connect() as connection:
                yield connection
        finally:
            # The engine is not disposed of, because that would close the session and free its lock.
            with contextlib.suppress(DatabaseError):
                self._set_autocommit(True)

    def _set_autocommit(self, on: bool) -> None:
        with self._errors_translated():
            if self._dialect.name == "sqlite":
                self._raw.isolation_level = None if on else ""
            elif callable(self._raw.autocommit):
                self._raw.autocommit(on)
            else:
                self._raw.autocommit = on

    def close(self) -> None:
        """End the session, which frees its locks, if this process opened it."""
        if self.owned and self.is_ours:
            with contextlib.suppress(Exception):  # it may have ended already, which is fine
                self._raw.close()

    @contextlib.contextmanager
    def _errors_translated(self) -> Iterator[None]:
        """Translate the driver's errors. Close the session after an interrupt, even if another owns it.

        The answer would still arrive, and be taken as the answer to the next query. SQLAlchemy discards such a
        connection as well.
        """
        with translated(self._dialect, self._raw, self.label):
            try:
                yield
            except self._dialect.loaded_dbapi.Error:
                raise
            except BaseException:
                if self._dialect.name != "sqlite":
                    with contextlib.suppress(Exception):
                        self._raw.close()
                raise

    @contextlib.contextmanager
    def _cursor(self, sql: str, values: dict[str, Any]) -> Iterator[Any]:
        with self._errors_translated():
            cursor = self._raw.cursor()
            try:
                if values:
                    cursor.execute(*_bound(self._dialect, sql, values))
                else:
                    cursor.execute(sql)
                yield cursor
            finally:
                with contextlib.suppress(Exception):
                    cursor.close()


def quoted(name: str) -> str:
    """Return ``name`` as an identifier of MySQL (manual, "Schema Object Names")."""
    return "`" + name.replace("`", "``") + "`"


def as_text(value: object) -> str:
    """Return a value of a column as text, which some drivers return as bytes."""
    return value.decode() if isinstance(value, bytes) else str(value)


def _bound(dialect: Dialect, sql: str, values: dict[str, Any]) -> tuple[str, Any]:
    """Return ``sql`` and ``values`` in the parameter style of the driver."""
    dialect_class: Any = type(dialect)
    text, order = _compiled(dialect_class, dialect.paramstyle, sql)
    return text, values if order is None else tuple(values[name] for name in order)


@functools.lru_cache(maxsize=256)
def _compiled(dialect_class: Any, paramstyle: str, sql: str) -> tuple[str, tuple[str, ...] | None]:
    import sqlalchemy

    compiled: Any = sqlalchemy.text(sql).compile(dialect=dialect_class(paramstyle=paramstyle))
    return str(compiled), None if compiled.positiontup is None else tuple(compiled.positiontup)
