"""Running one migration file, statement by statement, so that what was done is known afterwards.

Around each statement two marks are written into our own table: that it is about to run, and that it ended.

- On MySQL the marks and the statement travel in one packet. When this process is killed, the server still runs
  the packet to its end before it ends the session, and with it the lock: so the next holder finds the truth,
  also of an ALTER that took an hour. Where the driver or a pooler refuses several statements in one packet,
  they are sent one by one, and a kill in between leaves "not known".
- A statement that only writes rows shares one transaction with its marks: it and they happen or do not.
- Marks within a transaction of the file itself are undone with it, and so tell where it began.
- Statements under LOCK TABLES, and those that look back at the one before (ROW_COUNT()), share marks.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Sequence
from typing import Final

from sharedvol.database.connection import Database, quoted
from sharedvol.errors import DatabaseError, LedgerError, LockLostError, MigrationError
from sharedvol.locks.mysql.server import Server
from sharedvol.migrations.ledger import Ledger, lock_was_lost
from sharedvol.migrations.sql import session_state as resuming
from sharedvol.migrations.sql import statements as kinds
from sharedvol.migrations.sql.mysql_script import Statement

_SETS: Final = ("SET", "CALL", "EXECUTE", "BEGIN", "IF", "CASE", "LOOP", "WHILE", "REPEAT", "FOR")
_NOT_A_SETTING: Final = frozenset(
    "error_count identity in_transaction insert_id last_gtid last_insert_id rand_seed1 rand_seed2 timestamp "
    "warning_count".split()
)
_OF_THE_SERVER: Final = ("information_schema", "mysql", "performance_schema", "sys")
_USER_VARIABLE: Final = re.compile(r"(?<![@\w`'\"])@`?([\w$.]{1,64})", re.ASCII)
_LOOKS_BACK: Final = re.compile(
    r"\b(?:ROW_COUNT|FOUND_ROWS)\s*\(|\bGET\s+(?:CURRENT\s+)?DIAGNOSTICS\b|\bSHOW\s+(?:WARNINGS|ERRORS|COUNT)\b"
    r"|@@(?:warning_count|error_count)",
    re.IGNORECASE,
)
_OWN_TRANSACTIONS: Final = re.compile(
    r"\b(?:START\s+TRANSACTION|BEGIN|COMMIT|ROLLBACK|SAVEPOINT|XA|AUTOCOMMIT|LOCK\s+TABLES?|CALL)\b", re.IGNORECASE
)
_NOT_IN_A_TRANSACTION: Final = ("PRAGMA", "VACUUM", "ATTACH", "DETACH", "BEGIN", "COMMIT", "END", "ROLLBACK")


class StatementFailed(MigrationError):
    """A statement of a migration failed.

    Attributes:
        number: which one, counted from 1.
        cause: what the server said.
        whole: nothing of the statement remains; False if that is not known.
    """

    def __init__(self, number: int, cause: DatabaseError, *, whole: bool) -> None:
        super().__init__(str(cause))
        self.number, self.cause, self.whole = number, cause, whole


class MySQLRunner:
    """Runs files on the connection that holds the lock.

    Args:
        database: that connection.
        ledger: on the same connection, with its names qualified.
        server: what the connection leads to.
    """

    def __init__(self, database: Database, ledger: Ledger, server: Server) -> None:
        self._database, self._ledger, self._server = database, ledger, server
        self._together = self._takes_several()
        self._settings = self._read_settings()
        self._other_engines: bool | None = None  # not known yet

    def run(
        self,
        statements: Sequence[Statement],
        row: int,
        done: int,
        tell: Callable[[int, Statement], object],
    ) -> None:
        """Run what is behind statement ``done``, and leave the session as it was before the file.

        Args:
            statements: all of the file.
            row: of the ledger's own table, for the marks.
            done: the statements that an earlier run ended.
            tell: called before each statement, with its number counted from 1.

        Raises:
            StatementFailed: one failed; the ones before it are done, the file's own transaction is undone.
            LockLostError: the lock was lost; the statement was not run.
        """
        for statement in statements[:done]:
            if resuming.is_replayed(statement.text):
                self._database.run(statement.text)
        alone = not any(_OWN_TRANSACTIONS.search(statement.text) for statement in statements)
        unit = 0  # the first of the statements that share marks
        locked = False
        for number, statement in enumerate(statements[done:], done + 1):
            tell(number, statement)
            text = statement.text
            first = unit == 0
            unit = unit or number
            locked = (locked or kinds.locks_tables(text)) and not kinds.unlocks_tables(text)
            last = not locked and not (number < len(statements) and _LOOKS_BACK.search(statements[number].text))
            together = last and alone and kinds.writes_rows(text) and kinds.can_be_followed(text)
            try:
                # Not asked in the middle of a unit, where ROW_COUNT() would see the question.
                mixed = first and (together or not alone) and self._has_other_engines(statements)
                if first and together and not mixed:
                    self._in_one_transaction(text, row, number)
                else:
                    # Where a ROLLBACK undoes the marks and not the rows, no mark of a transaction tells the truth.
                    begun = len(statements) + 1 if mixed and not alone else number
                    self._marked(text, row, number, begun=begun, first=first, last=last)
            except DatabaseError as error:
                raise self._failed(error, statements, row, number, unit) from error
            if last:
                unit = 0
            if kinds.commits_implicitly(text):
                self._other_engines = None  # it may have made a table
        self._settle(statements)

    def _in_one_transaction(self, text: str, row: int, number: int) -> None:
        parts = ["START TRANSACTION", self._ledger.mark_started(row, number, done=number), text, "COMMIT"]
        self._send(parts, number, text, fence=1, end=3)

    def _marked(self, text: str, row: int, number: int, *, begun: int, first: bool, last: bool) -> None:
        parts = [self._ledger.mark_started(row, begun)] if first else []
        parts.append(text)
        end = len(parts) - 1
        if last:
            parts.append(self._ledger.mark_done(row, number))
            if kinds.commits_implicitly(text):
                parts.append("COMMIT")  # else the mark would be lost under SET autocommit = 0
        self._send(parts, number, text, fence=0 if first else None, end=end)

    def _send(self, parts: Sequence[str], number: int, text: str, *, fence: int | None, end: int) -> None:
        """Send the parts, in one packet where that can be.

        Args:
            parts: marks, and a statement of the migration.
            number: of that statement.
            text: of that statement.
            fence: the place of the fence among the parts.
            end: the place of the part behind which the statement is done.
        """
        together = self._together and kinds.can_be_followed(text)
        answered = 0
        try:
            for packet in ["\n;".join(parts)] if together else parts:
                for _ in self._database.send(packet):
                    answered += 1
        except DatabaseError as error:
            if error.lost:
                raise
            if fence is not None and answered <= fence:
                if lock_was_lost(error):
                    raise LockLostError(
                        "the lock was lost: the migration itself, or something else, released it"
                    ) from error
                raise LedgerError(f"cannot write down how far the migration got: {error}") from error
            if answered > end and kinds.is_whole(text):  # else it is a later result of the statement itself
                raise LedgerError(f"statement {number} was done, and that cannot be written down: {error}") from error
            raise

    def _failed(
        self, error: DatabaseError, statements: Sequence[Statement], row: int, number: int, unit: int
    ) -> StatementFailed:
        if error.lost:
            return StatementFailed(number, error, whole=False)
        text = statements[number - 1].text
        whole = unit == number and kinds.is_whole(text)
        with contextlib.suppress(DatabaseError):
            self._database.run("ROLLBACK")
            self._database.run("UNLOCK TABLES")
            # What the ROLLBACK undid is undone only where all tables can do that.
            self._other_engines = None
            whole = whole and (kinds.commits_implicitly(text) or not self._has_other_engines(statements))
            self._ledger.mark_failed(row, number, str(error), whole=whole)
            self._database.run("COMMIT")  # it may be under SET autocommit = 0
            return StatementFailed(number, error, whole=whole)
        return StatementFailed(number, error, whole=False)  # the connection went, too

    def _has_other_engines(self, statements: Sequence[Statement]) -> bool:
        """Whether a table of the schema, or of another that the file names, keeps half of a statement that failed."""
        if self._other_engines is None:
            text = "\n".join(statement.text for statement in statements).lower()
            schemas = [str(name) for (name,) in self._database.query("SHOW DATABASES")]
            named = [name for name in schemas if name.lower() in text and name.lower() not in _OF_THE_SERVER]
            values = {f"s{number}": name for number, name in enumerate([str(self._server.schema), *named])}
            rows = self._database.query(
                f"SELECT 1 FROM information_schema.TABLES WHERE TABLE_SCHEMA IN (:{', :'.join(values)}) "
                "AND TABLE_TYPE = 'BASE TABLE' AND COALESCE(ENGINE, '') <> 'InnoDB' LIMIT 1",
                **values,
            )
            self._other_engines = bool(rows)
        return self._other_engines

    def _settle(self, statements: Sequence[Statement]) -> None:
        """End what the file left open, and undo its settings, before the next file and the ledger."""
        self._other_engines = None
        self._database.run("UNLOCK TABLES")
        self._database.run("COMMIT")
        self._database.run(f"USE {quoted(str(self._server.schema))}")
        used = {name for statement in statements for name in _USER_VARIABLE.findall(statement.text)}
        if used:
            self._tidy("SET " + ", ".join(f"@`{name}` = NULL" for name in sorted(used)))
        if any(kinds.words(statement.text)[0] in _SETS or ";" in statement.text for statement in statements):
            for name, value in self._read_settings().items():
                before = self._settings.get(name, value)
                if before != value:
                    number = re.fullmatch(r"-?\d+(\.\d+)?", before)
                    literal = before if number else "'" + before.replace("'", "''") + "'"
                    self._tidy(f"SET SESSION {name} = {literal}")
            self._tidy("SET SESSION timestamp = DEFAULT")

    def _tidy(self, text: str) -> None:
        try:
            self._database.run(text)
        except DatabaseError as error:
            if error.lost:
                raise
            # Then the file did not set it in this session: it is the server's, or cannot be set by this account.

    def _read_settings(self) -> dict[str, str]:
        rows = self._database.query("SHOW SESSION VARIABLES")
        return {str(name): str(value) for name, value in rows if name not in _NOT_A_SETTING}

    def _takes_several(self) -> bool:
        try:
            self._database.run("DO 0;DO 0")
        except DatabaseError as error:
            if error.lost:
                raise
            return False
        return True


class SQLiteRunner:
    """Runs files on an SQLite database, whose every statement can be undone."""

    def __init__(self, database: Database, ledger: Ledger) -> None:
        self._database, self._ledger = database, ledger

    def run(
        self,
        statements: Sequence[Statement],
        row: int,
        done: int,
        tell: Callable[[int, Statement], object],
    ) -> None:
        """As `MySQLRunner.run`."""
        for statement in statements[:done]:
            if kinds.words(statement.text)[0] in ("PRAGMA", "ATTACH"):
                self._database.run(statement.text)
        for number, statement in enumerate(statements[done:], done + 1):
            tell(number, statement)
            try:
                self._one(statement.text, row, number)
            except DatabaseError as error:
                with contextlib.suppress(DatabaseError):
                    if self._database.raw.in_transaction:
                        self._database.run("ROLLBACK")
                    self._ledger.mark_failed(row, number, str(error), whole=True)
                raise StatementFailed(number, error, whole=True) from error
        if self._database.raw.in_transaction:
            self._database.run("COMMIT")

    def _one(self, text: str, row: int, number: int) -> None:
        by_itself = kinds.words(text)[0] in _NOT_IN_A_TRANSACTION
        own = not self._database.raw.in_transaction and not by_itself
        if own:
            self._database.run("BEGIN IMMEDIATE")
        if not by_itself or kinds.words(text)[0] in ("COMMIT", "END"):  # those that SQLite takes only once
            self._database.run(self._ledger.mark_started(row, number, done=number))
            self._database.run(text)
        else:
            self._database.run(self._ledger.mark_started(row, number))
            self._database.run(text)
            self._database.run(self._ledger.mark_done(row, number))
        if own:
            self._database.run("COMMIT")
