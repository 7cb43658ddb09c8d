"""Read and write the tables of applied migrations: the ledger, which R shares, and our own table of progress.

``schema_version`` gets a row for each migration when it ends. ``sharedvol_migration`` has a row for each migration that
ever began here: how far it got, statement by statement, and what its text was.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from sharedvol.database.connection import Database, as_text, quoted
from sharedvol.errors import DatabaseError, LedgerError, LockLostError
from sharedvol.migrations.records import ProgressRow, Records
from sharedvol.migrations.sql.mysql_script import Statement

_NO_SUCH_TABLE: Final = 1146
_NO_DATABASE: Final = 1046
_DENIED: Final = (1142, 1143)
_FENCE_FAILED: Final = 1242  # ER_SUBQUERY_NO_1_ROW: see Ledger.mark_started

_LEDGER: Final = (
    "CREATE TABLE IF NOT EXISTS {ledger} (filename VARCHAR(255) NOT NULL PRIMARY KEY, "
    "applied_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP, success BOOLEAN DEFAULT TRUE)"
)
_PROGRESS: Final = {
    # Names compare byte by byte, whatever the schema's collation, so that two files are two rows.
    "mysql": "CREATE TABLE IF NOT EXISTS {progress} ("
    "id INT NOT NULL AUTO_INCREMENT PRIMARY KEY, "
    "filename VARCHAR(255) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL UNIQUE, "
    "checksum CHAR(64) CHARACTER SET ascii NOT NULL, statements INT NOT NULL, "
    "digests LONGTEXT CHARACTER SET ascii NOT NULL, started INT NOT NULL DEFAULT 0, done INT NOT NULL DEFAULT 0, "
    "applied BOOLEAN NOT NULL DEFAULT FALSE, error_at INT NOT NULL DEFAULT 0, error TEXT CHARACTER SET utf8mb4, "
    "replica VARCHAR(255) CHARACTER SET utf8mb4, "
    "updated_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP ON UPDATE CURRENT_TIMESTAMP"
    ") ENGINE=InnoDB",
    "sqlite": "CREATE TABLE IF NOT EXISTS {progress} ("
    "id INTEGER PRIMARY KEY AUTOINCREMENT, filename TEXT NOT NULL UNIQUE, checksum TEXT NOT NULL, "
    "statements INT NOT NULL, digests TEXT NOT NULL, started INT NOT NULL DEFAULT 0, done INT NOT NULL DEFAULT 0, "
    "applied BOOLEAN NOT NULL DEFAULT FALSE, error_at INT NOT NULL DEFAULT 0, error TEXT, replica TEXT, "
    "updated_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP)",
}


class Ledger:
    """The two tables in one database.

    Args:
        database: the connection that holds the lock, or one that only reads.
        lock_name: the lock that must be held to write; None if a file lock is used instead.

    Attributes:
        database: the connection.
        table: the name of the ledger in SQL.
    """

    def __init__(self, database: Database, lock_name: str | None = None) -> None:
        self.database = database
        self._lock_name = lock_name
        self.table, self._progress = "schema_version", "sharedvol_migration"
        if database.home is not None:
            # Qualified, because a migration may have changed the schema with USE.
            home = quoted(database.home)
            self.table, self._progress = f"{home}.schema_version", f"{home}.sharedvol_migration"

    def read(self) -> Records:
        """Read both tables, in two round trips.

        Raises:
            LedgerError: one of them exists and cannot be read. That never counts as "nothing applied".
        """
        try:
            rows = self.database.query(f"SELECT filename, success FROM {self.table}")
        except DatabaseError as error:
            if not _is_missing(error, self.table):
                raise _unreadable(self.table, error) from error
            exists, rows = False, []
        else:
            exists = True
        applied = {as_text(name): bool(success) for name, success in rows}
        return Records(exists, applied, self._read_progress())

    def _read_progress(self) -> Mapping[str, ProgressRow] | None:
        try:
            rows = self.database.query(
                "SELECT id, filename, checksum, applied, statements, started, done, error_at, error "
                f"FROM {self._progress}"
            )
        except DatabaseError as error:
            if _is_missing(error, self._progress):
                return {}
            if error.code in _DENIED:
                return None  # the account is older than our table; this matters only if something is pending
            raise _unreadable(self._progress, error) from error
        return {
            as_text(name): ProgressRow(
                row, as_text(name), as_text(checksum), bool(applied), total, started, done, at, message
            )
            for row, name, checksum, applied, total, started, done, at, message in rows
        }

    def digests(self, row: ProgressRow) -> list[str]:
        """Return the digests of the migration's statements when it ran last."""
        ((digests,),) = self.database.query(f"SELECT digests FROM {self._progress} WHERE id = :id", id=row.id)
        return str(as_text(digests)).split()

    def create(self, exists: bool) -> None:
        """Create the tables that are missing.

        Raises:
            LedgerError: this account may not. The message has the statement, for an account that may.
        """
        for table, sql in (("ledger", _LEDGER), ("progress", _PROGRESS[self.database.kind])):
            if table == "ledger" and exists:
                continue  # an account without the right to create tables can still migrate
            statement = sql.format(ledger=self.table, progress=self._progress)
            try:
                self.database.query(f"SELECT 1 FROM {self._progress if table == 'progress' else self.table} LIMIT 1")
                continue
            except DatabaseError as error:
                if error.lost:
                    raise
            try:
                self.database.run(statement)
            except DatabaseError as error:
                if error.lost:
                    raise
                raise LedgerError(
                    f"cannot make the table that records migrations: {error}; grant CREATE to the account, or let "
                    f"another one run: {statement}"
                ) from error

    def begin(self, name: str, checksum: str, statements: Sequence[Statement], replica: str, done: int) -> int:
        """Record that a migration is about to run after statement ``done``. Return the row's number."""
        values = {
            "name": name,
            "checksum": checksum,
            "statements": len(statements),
            "digests": " ".join(digest(statement) for statement in statements),
            "done": done,
            "replica": replica[:255],
        }
        known = self.database.query(f"SELECT id FROM {self._progress} WHERE filename = :name", name=name)
        if known:
            sql = (
                f"UPDATE {self._progress} SET checksum = :checksum, statements = :statements, digests = :digests, "
                "started = :done, done = :done, applied = FALSE, error_at = 0, error = NULL, replica = :replica "
                "WHERE filename = :name"
            )
        else:
            sql = (
                f"INSERT INTO {self._progress} (filename, checksum, statements, digests, started, done, replica) "
                "VALUES (:name, :checksum, :statements, :digests, :done, :done, :replica)"
            )
        self._write(sql, **values)
        if not known:
            known = self.database.query(f"SELECT id FROM {self._progress} WHERE filename = :name", name=name)
        return int(known[0][0])

    def mark_started(self, row: int, number: int, *, done: int | None = None) -> str:
        """Return the SQL that records that ``number`` is about to run.

        It is also the fence: without the lock it fails, and so does everything after it in the same packet. An UPDATE
        cannot raise an error directly. A subquery with two rows can (MySQL manual, "Subquery Errors"), and is evaluated
        only if this connection does not hold the lock.
        """
        value = str(number)
        if self._lock_name is not None:
            name = "0x" + self._lock_name.encode().hex()
            held = f"IS_USED_LOCK(CONVERT({name} USING utf8mb4)) <=> CONNECTION_ID()"
            value = f"IF({held}, {number}, (SELECT 1 UNION SELECT 2))"
        also = "" if done is None else f", done = {done}"
        return f"UPDATE {self._progress} SET started = {value}{also}, error_at = 0, error = NULL WHERE id = {row}"

    def mark_done(self, row: int, number: int) -> str:
        """Return the SQL that records that ``number`` ended."""
        return f"UPDATE {self._progress} SET started = {number}, done = {number} WHERE id = {row}"

    def mark_failed(self, row: int, number: int, message: str, *, whole: bool) -> None:
        """Record that ``number`` failed and, if ``whole``, that nothing of it remains."""
        self.database.change(
            f"UPDATE {self._progress} SET started = :number, "
            "error_at = CASE WHEN :whole THEN :number ELSE 0 END, error = :message WHERE id = :row",
            row=row,
            number=number,
            whole=int(whole),
            message=message[:4000],
        )

    def record(self, name: str, row: int | None, records: Records) -> None:
        """Record that a migration ended, if this connection still holds the lock.

        Raises:
            LockLostError: it does not, and nothing was written.
            LedgerError: the ledger cannot be written.
        """
        fence, values = self._fence()
        if name in records.applied:  # with success = FALSE
            sql = f"UPDATE {self.table} SET success = TRUE, applied_at = CURRENT_TIMESTAMP WHERE filename = :name"
            sql += f" AND {fence}"
        else:
            dual = " FROM DUAL" if self.database.kind == "mysql" else ""
            sql = f"INSERT INTO {self.table} (filename, success) SELECT :name, TRUE{dual} WHERE {fence}"
        with self._transaction():
            self._fenced(sql, name, **values)
            if row is not None:
                self._write(f"UPDATE {self._progress} SET applied = TRUE WHERE id = :row", row=row)

    def rename(self, old: str, new: str, records: Records) -> None:
        """Rename the row of ``old`` to ``new``, or remove it if ``new`` has a row as well.

        Raises:
            LockLostError, LedgerError: as `record`.
        """
        fence, values = self._fence()
        if new in records.applied:
            sql = f"DELETE FROM {self.table} WHERE filename = :old AND {fence}"
        else:
            sql = f"UPDATE {self.table} SET filename = :new WHERE filename = :old AND {fence}"
            values["new"] = new
        with self._transaction():
            if old in records.applied:  # otherwise it only began
                self._fenced(sql, old, old=old, **values)
            if new in records.applied or new in (records.progress or ()):
                self._write(f"DELETE FROM {self._progress} WHERE filename = :old", old=old)
            else:
                self._write(f"UPDATE {self._progress} SET filename = :new WHERE filename = :old", old=old, new=new)

    def adopt(self, name: str, checksum: str) -> None:
        """Record the text of a migration that another program applied, so that a later change is noticed."""
        self._write(
            f"INSERT INTO {self._progress} (filename, checksum, statements, digests, applied) "
            "VALUES (:name, :checksum, 0, '', TRUE)",
            name=name,
            checksum=checksum,
        )

    def _fence(self) -> tuple[str, dict[str, Any]]:
        if self._lock_name is None:
            return "1 = 1", {}
        return "IS_USED_LOCK(:lock) = CONNECTION_ID()", {"lock": self._lock_name}

    def _fenced(self, sql: str, name: str, **values: Any) -> None:
        if ":name" in sql:
            values["name"] = name
        if self._write(sql, **values) < 1:
            raise LockLostError(
                f"the lock {self._lock_name!r} was lost before {name!r} could be recorded: another replica may have it"
            )

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        """Open a transaction, so that a kill cannot leave the two tables in contradiction."""
        self.database.run("BEGIN")
        try:
            yield
        except BaseException:
            with contextlib.suppress(DatabaseError):
                self.database.run("ROLLBACK")
            raise
        self.database.run("COMMIT")

    def _write(self, sql: str, **values: Any) -> int:
        try:
            return self.database.change(sql, **values)
        except DatabaseError as error:
            if error.lost:
                raise
            raise LedgerError(f"cannot write the ledger: {error}") from error


def digest(statement: Statement) -> str:
    """Return a digest that tells statements apart. 80 bits are enough within one file."""
    return hashlib.sha256(statement.text.encode()).hexdigest()[:20]


def lock_was_lost(error: DatabaseError) -> bool:
    """Return whether ``error`` comes from the fence of `Ledger.mark_started`."""
    return error.code == _FENCE_FAILED


def _is_missing(error: DatabaseError, table: str) -> bool:
    """Return whether ``table`` itself is missing. SQLite reports a view with a missing table in the same way."""
    return error.code == _NO_SUCH_TABLE or str(error).endswith(f"no such table: {table}")


def _unreadable(table: str, error: DatabaseError) -> LedgerError | DatabaseError:
    if error.lost:
        return error
    if error.code == _NO_DATABASE:
        return LedgerError(f"{error}: name the database in the URL, as in mysql://user@host/DATABASE")
    return LedgerError(
        f"cannot read the table {table}, so what has been applied is not known and nothing is run: {error}"
    )
