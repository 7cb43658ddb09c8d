"""One connection to a database server: opened once, spoken to in plain SQL, never reopened.

The locks and the migrations need what a pool hides: the very session that holds a lock, and no other. So this
goes through SQLAlchemy's dialects to the driver (PEP 249) and leaves pool and transactions alone: any driver
that SQLAlchemy knows for the server will do.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final

from sharedvol.database import url as database_url
from sharedvol.errors import DatabaseError

if TYPE_CHECKING:
    from sqlalchemy import URL, Connection, Engine
    from sqlalchemy.engine import Dialect

    Target = str | URL | Engine | Connection
    """What a database may be named by."""

_LOGIN_SECONDS: Final = 10
# Drivers that take these keywords; with them, connecting costs no further round trip.
_AUTOCOMMIT_AT_CONNECT: Final = ("pymysql", "mysqldb", "mysqlconnector")
_FLAGS_AT_CONNECT: Final = ("pymysql", "mysqldb")


class Database:
    """A connection of our own, in autocommit mode.

    In autocommit mode every question sees what others have committed; within a transaction it would be
    answered from the snapshot of the first one (MySQL manual, "Consistent Nonlocking Reads").

    Attributes:
        label: what to call the database in a message: without the password.
        kind: ``mysql`` (MariaDB too) or ``sqlite``.
        home: the schema that the session began with, once it was asked for.
        owned: whether `close` ends the session; an SQLAlchemy ``Connection`` is its owner's to close.
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
        """Connect to what ``target`` names; an SQLAlchemy ``Connection`` is used as it is and not closed.

        Args:
            target: what to connect to.
            patience: seconds to wait for each answer; None for ever, as a migration may take that long. From a
                URL and by PyMySQL only; there the log-in has a limit in any case.

        Raises:
            DatabaseError: it cannot be reached, refuses us, or the packages for it are missing.
            ValueError: ``target`` is no URL.
        """
        try:
            import sqlalchemy
        except ModuleNotFoundError as error:
            raise DatabaseError(
                "SQLAlchemy is not installed, which databases need: install sharedvol[mysql]"
            ) from error
        if isinstance(target, sqlalchemy.Connection):
            return cls._from_connection(target)
        if isinstance(target, sqlalchemy.Engine):
            return cls._from_engine(target)
        url = database_url.read_url(target)
        dialect_class = database_url.dialect_class(url)
        if dialect_class.is_async:
            raise ValueError(f"{database_url.scheme(url)} is an asynchronous driver: say mysql:// for one that is not")
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
        except Exception:  # of a dialect whose options are not checked before
            raise ValueError(f"the URL of {label} has an option that cannot be used") from None
        if dialect.driver in _AUTOCOMMIT_AT_CONNECT:
            options.setdefault("autocommit", True)
        if dialect.driver in _FLAGS_AT_CONNECT:
            # As the stock clients do; the marks around a statement of a migration travel with it.
            options["client_flag"] = options.get("client_flag", 0) | (1 << 16)  # CLIENT_MULTI_STATEMENTS
        if dialect.driver == "pymysql" and isinstance(options.get("password"), str):
            options["password"] = options["password"].encode()  # PyMySQL would say it in Latin-1
        impatient = dialect.driver == "pymysql" and "read_timeout" not in options
        if impatient:
            # Something may take the connection and say nothing; PyMySQL limits the wait for its greeting by this.
            options["read_timeout"] = patience or _LOGIN_SECONDS
        if dialect.name == "sqlite":
            options["isolation_level"] = None  # autocommit, whatever the version of Python
        with _told(dialect, None, f"cannot connect to {label}", url):
            try:
                raw = dialect.connect(*arguments, **options)
            except (TypeError, ValueError, AttributeError, LookupError):
                raise ValueError(f"the URL of {label} has an option that {dialect.driver} cannot use") from None
        if impatient and patience is None:
            raw._read_timeout = None  # the log-in is over
        again = functools.partial(cls._connect, url, dialect, _LOGIN_SECONDS)
        return cls(raw, dialect, label, owned=True, again=again)._in_autocommit()

    @classmethod
    def _from_engine(cls, engine: Engine, beside: Any = None) -> Database:
        import sqlalchemy

        if engine.dialect.is_async:
            raise ValueError(f"{engine.dialect.driver} is an asynchronous driver: use an engine of one that is not")
        label = database_url.label(engine.url)
        with _told(engine.dialect, None, f"cannot connect to {label}", engine.url):
            try:
                # An empty pool of the same making: the engine's own may be exhausted, by those who wait for us, and
                # has its parent's connections in a forked child.
                pooled = engine.pool.recreate().connect()
                raw = pooled.driver_connection
                pooled.detach()  # the pool must not give a session that holds a lock to somebody else
            except sqlalchemy.exc.DBAPIError as error:
                if error.orig is None:
                    raise
                raise error.orig from error
        if raw is beside is not None:
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
        """A second connection to where this one leads, of our own and in autocommit mode. To be closed.

        Raises:
            DatabaseError: there is none to be had.
        """
        if self._again is None:
            raise DatabaseError(f"there is no second connection to {self.label}")
        return self._again()

    def _in_autocommit(self) -> Database:
        try:
            if self._dialect.name != "sqlite" or self._raw.isolation_level is not None:
                with _told(self._dialect, self._raw, f"cannot use {self.label}"):
                    self._dialect.set_isolation_level(self._raw, "AUTOCOMMIT")
        except BaseException:
            self.close()
            raise
        return self

    def query(self, sql: str, **values: Any) -> list[tuple[Any, ...]]:
        """The rows that ``sql``, with ``:name`` for each of ``values``, gives."""
        with self._cursor(sql, values) as cursor:
            return [tuple(row) for row in cursor.fetchall()]

    def change(self, sql: str, **values: Any) -> int:
        """How many rows ``sql`` found or made, with ``:name`` for each of ``values``."""
        with self._cursor(sql, values) as cursor:
            return int(cursor.rowcount)

    def send(self, text: str) -> Iterator[None]:
        """Send ``text`` as it is; one step for each result of the server, until all are read.

        A server goes on after the first result, and an error in a later one is told only to who reads it.
        """
        with self._asking():
            cursor = self._raw.cursor()
        try:
            with self._asking():
                cursor.execute(text)  # without arguments no driver looks for % or ? in it
            yield
            if not hasattr(cursor, "nextset"):
                return
            while True:
                with self._asking():
                    more = cursor.nextset()
                if not more:
                    return
                yield
        finally:
            with contextlib.suppress(Exception), self._asking():  # a broken connection cannot close a cursor either
                cursor.close()  # which reads what is left

    def run(self, text: str) -> None:
        """`send` to the end."""
        for _ in self.send(text):
            pass

    @property
    def driver_session(self) -> int | None:
        """The session's id as the driver was told when it connected, where it keeps that."""
        told = getattr(self._raw, "thread_id", None) or getattr(self._raw, "connection_id", None)
        told = told() if callable(told) else told
        if isinstance(told, tuple):
            told = told[0]
        return told if isinstance(told, int) else None

    @property
    def read_timeout(self) -> float | None:
        """Seconds after which the driver takes a server that does not answer for lost, where it says so."""
        told = getattr(self._raw, "_read_timeout", None)  # PyMySQL
        return float(told) if isinstance(told, int | float) else None

    @property
    def raw(self) -> Any:
        """The driver's connection."""
        return self._raw

    @property
    def is_ours(self) -> bool:
        """Whether this process made the connection: a forked child must not speak on its parent's."""
        return os.getpid() == self._pid

    @contextlib.contextmanager
    def sqlalchemy(self) -> Iterator[Connection]:
        """An SQLAlchemy ``Connection`` on this very session, in transactions as SQLAlchemy makes them."""
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
            # The engine is dropped, not disposed of: that would close the session, and the lock with it.
            with contextlib.suppress(DatabaseError):
                self._set_autocommit(True)

    def _set_autocommit(self, on: bool) -> None:
        with self._asking():
            if self._dialect.name == "sqlite":
                self._raw.isolation_level = None if on else ""
            elif callable(self._raw.autocommit):
                self._raw.autocommit(on)
            else:
                self._raw.autocommit = on

    def close(self) -> None:
        """End the session, which frees its locks; one that is not ours is left alone."""
        if self.owned and self.is_ours:
            with contextlib.suppress(Exception):  # it may be gone already, which is what we want
                self._raw.close()

    @contextlib.contextmanager
    def _asking(self) -> Iterator[None]:
        """Errors as ours; and an interrupt ends the session, also one that is not ours.

        The answer would still come, and be taken for that to the next question: SQLAlchemy, too, gives such a
        connection up.
        """
        with _told(self._dialect, self._raw, self.label):
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
        with self._asking():
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
    """``name`` as an identifier of MySQL (manual, "Schema Object Names")."""
    return "`" + name.replace("`", "``") + "`"


def _bound(dialect: Dialect, sql: str, values: dict[str, Any]) -> tuple[str, Any]:
    """``sql`` and ``values`` in the parameter style of the driver."""
    dialect_class: Any = type(dialect)
    text, order = _compiled(dialect_class, dialect.paramstyle, sql)
    return text, values if order is None else tuple(values[name] for name in order)


@functools.lru_cache(maxsize=256)
def _compiled(dialect_class: Any, paramstyle: str, sql: str) -> tuple[str, tuple[str, ...] | None]:
    import sqlalchemy

    compiled: Any = sqlalchemy.text(sql).compile(dialect=dialect_class(paramstyle=paramstyle))
    return str(compiled), None if compiled.positiontup is None else tuple(compiled.positiontup)


@contextlib.contextmanager
def _told(dialect: Dialect, raw: Any, what: str, url: URL | None = None) -> Iterator[None]:
    """Raise what the driver raises as an error of ours; without the secrets of ``url``, where it may repeat them."""
    driver_error = dialect.loaded_dbapi.Error
    try:
        yield
    except driver_error as error:
        raise _as_ours(dialect, raw, what, error, url) from error
    except (OSError, RuntimeError) as error:  # PyMySQL: the socket, or a missing package for the log-in
        words = str(error) if url is None else database_url.redact(str(error), url)
        raise DatabaseError(f"{what}: {words}", lost=True) from error


def _as_ours(
    dialect: Dialect, raw: Any, what: str, error: BaseException | None, url: URL | None = None
) -> DatabaseError:
    code = error.args[0] if error is not None and error.args and isinstance(error.args[0], int) else None
    words = str(error.args[1] if code is not None and len(error.args) > 1 else error)  # type: ignore[union-attr]
    lost = raw is None or code == 0 or bool(dialect.is_disconnect(error, raw, None))  # type: ignore[arg-type]
    words = words or "the connection is closed"
    if url is not None:
        words = database_url.redact(words, url)
    return DatabaseError(f"{what}: {words}" + (f" (error {code})" if code else ""), code, lost=lost)
