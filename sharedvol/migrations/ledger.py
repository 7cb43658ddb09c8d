"""The tables that remember: the ledger that R shares, and our own, which R does not look at.

``schema_version`` has a row for each migration that ended, written once it did. ``sharedvol_migration`` has a
row for each that ever began here: how far it got, statement by statement, and what its text was.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sharedvol.database.connection import Database, quoted
from sharedvol.errors import DatabaseError, LedgerError, LockLostError
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
    # The names compare byte by byte whatever the schema's collation: two files are two rows.
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


@dataclass(frozen=True)
class Progress:
    """A row of our own table.

    Attributes:
        id: the row's number, for the marks.
        name: the migration.
        checksum: of its text when it was run last; empty where only others ran it.
        applied: it ended.
        statements: how many it had.
        started: the last statement that was begun.
        done: the last statement that ended.
        error_at: the statement that failed and of which nothing remains; 0 if there is none.
        error: what the server said.
    """

    id: int
    name: str
    checksum: str
    applied: bool
    statements: int
    started: int
    done: int
    error_at: int
    error: str | None


@dataclass(frozen=True)
class Records:
    """Both tables, as they were read.

    Attributes:
        exists: whether there is a ledger at all.
        applied: recorded names, with whether they succeeded.
        progress: our rows by name; None where this account may not read them.
    """

    exists: bool
    applied: Mapping[str, bool]
    progress: Mapping[str, Progress] | None


class Ledger:
    """The two tables in one database.

    Args:
        database: the connection that holds the lock, or one that only reads.
        lock_name: the lock that must be held for a write; None where a file lock stands for it.
    """

    def __init__(self, database: Database, lock_name: str | None = None) -> None:
        self._database = database
        self._lock_name = lock_name
        self._ledger, self._progress = "schema_version", "sharedvol_migration"
        if database.home is not None:
            # In full: a migration may have said USE.
            home = quoted(database.home)
            self._ledger, self._progress = f"{home}.schema_version", f"{home}.sharedvol_migration"

    def read(self) -> Records:
        """Both tables. Two round trips.

        Raises:
            LedgerError: one of them is there and cannot be read: that is never taken for "nothing applied".
        """
        try:
            rows = self._database.query(f"SELECT filename, success FROM {self._ledger}")
        except DatabaseError as error:
            if not _is_missing(error, self._ledger):
                raise _unreadable(self._ledger, error) from error
            exists, rows = False, []
        else:
            exists = True
        applied = {_text(name): bool(success) for name, success in rows}
        return Records(exists, applied, self._read_progress())

    def _read_progress(self) -> Mapping[str, Progress] | None:
        try:
            rows = self._database.query(
                "SELECT id, filename, checksum, applied, statements, started, done, error_at, error "
                f"FROM {self._progress}"
            )
        except DatabaseError as error:
            if _is_missing(error, self._progress):
                return {}
            if error.code in _DENIED:
                return None  # an account that was made before our table was: it matters only if there is work
            raise _unreadable(self._progress, error) from error
        return {
            _text(name): Progress(row, _text(name), _text(checksum), bool(applied), total, started, done, at, message)
            for row, name, checksum, applied, total, started, done, at, message in rows
        }

    def digests(self, row: Progress) -> list[str]:
        """What the statements were when the migration was run last, one digest each."""
        ((digests,),) = self._database.query(f"SELECT digests FROM {self._progress} WHERE id = :id", id=row.id)
        return str(_text(digests)).split()

    def create(self, exists: bool) -> None:
        """Make what is missing of the tables.

        Raises:
            LedgerError: with the statement that an account with the right to may run.
        """
        for table, sql in (("ledger", _LEDGER), ("progress", _PROGRESS[self._database.kind])):
            if table == "ledger" and exists:
                continue  # an account that may not create can still migrate what it may
            statement = sql.format(ledger=self._ledger, progress=self._progress)
            try:
                self._database.query(f"SELECT 1 FROM {self._progress if table == 'progress' else self._ledger} LIMIT 1")
                continue
            except DatabaseError as error:
                if error.lost:
                    raise
            try:
                self._database.run(statement)
            except DatabaseError as error:
                if error.lost:
                    raise
                raise LedgerError(
                    f"cannot make the table that records migrations: {error}; grant CREATE to the account, or let "
                    f"another one run: {statement}"
                ) from error

    def clashes(self, names: Collection[str]) -> list[tuple[str, str]]:
        """Pairs of different names that the ledger would take for one.

        Its column has the schema's collation, to which case and accents may mean nothing.
        """
        if self._database.kind != "mysql" or not names:
            return []
        charset, collation = self._collation()
        if charset == "binary":
            return []
        values = {f"n{number}": name for number, name in enumerate(sorted(names))}
        table = " UNION ALL ".join(
            f"SELECT CONVERT(:{key} USING {charset}) COLLATE {collation} AS name, {number} AS number"
            for number, key in enumerate(values)
        )
        ordered = list(values.values())
        rows = self._database.query(
            f"SELECT MIN(number), MAX(number) FROM ({table}) AS names GROUP BY name HAVING COUNT(*) > 1", **values
        )
        return [(ordered[int(first)], ordered[int(last)]) for first, last in rows]

    def unfit(self, names: Collection[str]) -> list[str]:
        """Names that the ledger's character set cannot hold: they would be run, and not be recorded."""
        if self._database.kind != "mysql" or not names:
            return []
        charset, _ = self._collation()
        if charset in ("binary", "utf8mb4"):
            return []
        values = {f"n{number}": name for number, name in enumerate(sorted(names))}
        table = " UNION ALL ".join(f"SELECT :{key} AS name" for key in values)
        rows = self._database.query(
            f"SELECT name FROM ({table}) AS names WHERE HEX(CONVERT(CONVERT(name USING {charset}) USING utf8mb4)) "
            "<> HEX(CONVERT(name USING utf8mb4))",
            **values,
        )
        return [_text(name) for (name,) in rows]

    def _collation(self) -> tuple[str, str]:
        """The character set and the collation of the ledger's names."""
        rows = self._database.query(f"SHOW FULL COLUMNS FROM {self._ledger} WHERE Field = 'filename'")
        collation = _text(rows[0][2]) if rows and rows[0][2] else "binary"
        return collation.split("_")[0], collation

    def begin(self, name: str, checksum: str, statements: Sequence[Statement], replica: str, done: int) -> int:
        """Write down that a migration is about to be run behind statement ``done``; the row's number."""
        values = {
            "name": name,
            "checksum": checksum,
            "statements": len(statements),
            "digests": " ".join(digest(statement) for statement in statements),
            "done": done,
            "replica": replica[:255],
        }
        known = self._database.query(f"SELECT id FROM {self._progress} WHERE filename = :name", name=name)
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
            known = self._database.query(f"SELECT id FROM {self._progress} WHERE filename = :name", name=name)
        return int(known[0][0])

    def mark_started(self, row: int, number: int, *, done: int | None = None) -> str:
        """The statement that writes down that ``number`` is about to run.

        It is the fence, too: without the lock it fails, and with it what is sent behind it in one packet.
        An UPDATE cannot raise an error of its own choice; a subquery with two rows does (MySQL manual,
        "Subquery Errors"), and is evaluated only when the lock is not ours.
        """
        value = str(number)
        if self._lock_name is not None:
            name = "0x" + self._lock_name.encode().hex()
            held = f"IS_USED_LOCK(CONVERT({name} USING utf8mb4)) <=> CONNECTION_ID()"
            value = f"IF({held}, {number}, (SELECT 1 UNION SELECT 2))"
        also = "" if done is None else f", done = {done}"
        return f"UPDATE {self._progress} SET started = {value}{also}, error_at = 0, error = NULL WHERE id = {row}"

    def mark_done(self, row: int, number: int) -> str:
        """The statement that writes down that ``number`` ended."""
        return f"UPDATE {self._progress} SET started = {number}, done = {number} WHERE id = {row}"

    def mark_failed(self, row: int, number: int, message: str, *, whole: bool) -> None:
        """Write down that ``number`` failed; ``whole``: and that nothing of it remains."""
        self._database.change(
            f"UPDATE {self._progress} SET started = :number, "
            "error_at = CASE WHEN :whole THEN :number ELSE 0 END, error = :message WHERE id = :row",
            row=row,
            number=number,
            whole=int(whole),
            message=message[:4000],
        )

    def record(self, name: str, row: int | None, records: Records) -> None:
        """Write down that a migration ended, if the lock is still ours.

        Raises:
            LockLostError: it is not, and nothing was written.
            LedgerError: the ledger cannot be written.
        """
        fence, values = self._fence()
        if name in records.applied:  # with success = FALSE
            sql = f"UPDATE {self._ledger} SET success = TRUE, applied_at = CURRENT_TIMESTAMP WHERE filename = :name"
            sql += f" AND {fence}"
        else:
            dual = " FROM DUAL" if self._database.kind == "mysql" else ""
            sql = f"INSERT INTO {self._ledger} (filename, success) SELECT :name, TRUE{dual} WHERE {fence}"
        with self._both():
            self._fenced(sql, name, **values)
            if row is not None:
                self._write(f"UPDATE {self._progress} SET applied = TRUE WHERE id = :row", row=row)

    def rename(self, old: str, new: str, records: Records) -> None:
        """The row of ``old`` becomes that of ``new``; if ``new`` has one too, ``old`` goes.

        Raises:
            LockLostError, LedgerError: as `record`.
        """
        fence, values = self._fence()
        if new in records.applied:
            sql = f"DELETE FROM {self._ledger} WHERE filename = :old AND {fence}"
        else:
            sql = f"UPDATE {self._ledger} SET filename = :new WHERE filename = :old AND {fence}"
            values["new"] = new
        with self._both():
            if old in records.applied:  # else it only began
                self._fenced(sql, old, old=old, **values)
            if new in records.applied or new in (records.progress or ()):
                self._write(f"DELETE FROM {self._progress} WHERE filename = :old", old=old)
            else:
                self._write(f"UPDATE {self._progress} SET filename = :new WHERE filename = :old", old=old, new=new)

    def adopt(self, name: str, checksum: str) -> None:
        """Remember the text of a migration that somebody else applied, so that a later change is seen."""
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
    def _both(self) -> Iterator[None]:
        """One transaction: a kill must not leave the two tables telling different things."""
        self._database.run("BEGIN")
        try:
            yield
        except BaseException:
            with contextlib.suppress(DatabaseError):
                self._database.run("ROLLBACK")
            raise
        self._database.run("COMMIT")

    def _write(self, sql: str, **values: Any) -> int:
        try:
            return self._database.change(sql, **values)
        except DatabaseError as error:
            if error.lost:
                raise
            raise LedgerError(f"cannot write the ledger: {error}") from error


def digest(statement: Statement) -> str:
    """What tells a statement from another: 80 bits are plenty among the statements of one file."""
    return hashlib.sha256(statement.text.encode()).hexdigest()[:20]


def lock_was_lost(error: DatabaseError) -> bool:
    """Whether ``error`` is the fence of `Ledger.mark_started`."""
    return error.code == _FENCE_FAILED


def _is_missing(error: DatabaseError, table: str) -> bool:
    """Whether it is ``table`` that is not there: SQLite says the same of a view whose own table is gone."""
    return error.code == _NO_SUCH_TABLE or str(error).endswith(f"no such table: {table}")


def _unreadable(table: str, error: DatabaseError) -> LedgerError | DatabaseError:
    if error.lost:
        return error
    if error.code == _NO_DATABASE:
        return LedgerError(f"{error}: name the database in the URL, as in mysql://user@host/DATABASE")
    return LedgerError(
        f"cannot read the table {table}, so what has been applied is not known and nothing is run: {error}"
    )


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
