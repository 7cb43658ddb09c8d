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

from sharedvol.database import Database
from sharedvol.errors import DatabaseError, LedgerError, LockLostError, MigrationError
from sharedvol.locks.mysql import Server
from sharedvol.migrations import statements as kinds
from sharedvol.migrations.ledger import Ledger, lock_was_lost
from sharedvol.migrations.script import Statement

_KEPT: Final = (
    "autocommit character_set_client character_set_connection character_set_results collation_connection "
    "default_storage_engine foreign_key_checks group_concat_max_len innodb_lock_wait_timeout innodb_strict_mode "
    "lock_wait_timeout max_execution_time max_statement_time sql_mode sql_notes sql_quote_show_create "
    "sql_require_primary_key sql_safe_updates time_zone transaction_isolation tx_isolation unique_checks wait_timeout"
).split()
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
            if kinds.is_replayed(statement.text):
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
            try:
                if first and last and alone and kinds.writes_rows(text) and kinds.can_be_followed(text):
                    self._in_one_transaction(text, row, number)
                else:
                    self._marked(text, row, number, first=first, last=last)
            except DatabaseError as error:
                raise self._failed(error, text, row, number, unit) from error
            if last:
                unit = 0
        self._settle()

    def _in_one_transaction(self, text: str, row: int, number: int) -> None:
        parts = ["START TRANSACTION", self._ledger.mark_started(row, number, done=number), text, "COMMIT"]
        self._send(parts, fence=1)

    def _marked(self, text: str, row: int, number: int, *, first: bool, last: bool) -> None:
        parts = [self._ledger.mark_started(row, number)] if first else []
        parts.append(text)
        if last:
            parts.append(self._ledger.mark_done(row, number))
            if kinds.commits_implicitly(text):
                parts.append("COMMIT")  # else the mark would be lost under SET autocommit = 0
        if kinds.can_be_followed(text):
            self._send(parts, fence=0 if first else None)
            return
        for position, part in enumerate(parts):
            self._send([part], fence=0 if first and position == 0 else None)

    def _send(self, parts: Sequence[str], *, fence: int | None) -> None:
        """Send the parts, in one packet where the server takes that; ``fence`` is the place of the fence."""
        answered = 0
        try:
            if self._together:
                for _ in self._database.send("\n;".join(parts)):
                    answered += 1
                return
            for part in parts:
                self._database.run(part)
                answered += 1
        except DatabaseError as error:
            if fence is None or answered > fence or error.lost:
                raise
            if lock_was_lost(error):
                raise LockLostError(
                    "the lock was lost: the migration itself, or something else, released it"
                ) from error
            raise LedgerError(f"cannot write down how far the migration got: {error}") from error

    def _failed(self, error: DatabaseError, text: str, row: int, number: int, unit: int) -> StatementFailed:
        if error.lost:
            return StatementFailed(number, error, whole=False)
        whole = unit == number and kinds.is_whole(text)
        with contextlib.suppress(DatabaseError):
            self._database.run("ROLLBACK")
            self._database.run("UNLOCK TABLES")
            # What the ROLLBACK undid is undone only where all tables can do that.
            whole = whole and (kinds.commits_implicitly(text) or not self._has_other_engines())
            self._ledger.mark_failed(row, number, str(error), whole=whole)
            return StatementFailed(number, error, whole=whole)
        return StatementFailed(number, error, whole=False)  # the connection went, too

    def _has_other_engines(self) -> bool:
        """Whether a table of the schema keeps half of a statement that failed."""
        rows = self._database.query(
            "SELECT 1 FROM information_schema.TABLES WHERE TABLE_SCHEMA = :schema AND TABLE_TYPE = 'BASE TABLE' "
            "AND COALESCE(ENGINE, '') <> 'InnoDB' LIMIT 1",
            schema=self._server.schema,
        )
        return bool(rows)

    def _settle(self) -> None:
        """End what the file left open, and undo its settings, before the next file and the ledger."""
        self._database.run("UNLOCK TABLES")
        self._database.run("COMMIT")
        now = self._read_settings()
        changed = {name: value for name, value in self._settings.items() if now.get(name, value) != value}
        quoted = "`" + str(self._server.schema).replace("`", "``") + "`"
        self._database.run(f"USE {quoted}")
        for name, value in changed.items():
            literal = value if re.fullmatch(r"\d+(\.\d+)?", value) else "'" + value.replace("'", "''") + "'"
            self._database.run(f"SET SESSION {name} = {literal}")

    def _read_settings(self) -> dict[str, str]:
        names = ", ".join(f"'{name}'" for name in _KEPT)
        rows = self._database.query(f"SHOW SESSION VARIABLES WHERE Variable_name IN ({names})")
        return {str(name): str(value) for name, value in rows}

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
        if not by_itself:
            self._database.run(self._ledger.mark_started(row, number, done=number))
            self._database.run(text)
        else:
            self._database.run(self._ledger.mark_started(row, number))
            self._database.run(text)
            self._database.run(self._ledger.mark_done(row, number))
        if own:
            self._database.run("COMMIT")
