"""Run one migration file statement by statement, and record how far it got.

The runner writes two marks into our own table around each statement: it is about to run, and it ended.

- On MySQL the marks and the statement travel in one packet. If this process is killed, the server still runs the
  packet to its end before it ends the session and frees the lock. So the next holder reads the truth, even about an
  ALTER that took an hour. If the driver or a pooler refuses several statements in one packet, they are sent one by one.
  Then a kill between them leaves "not known".
- A statement that only writes rows shares one transaction with its marks, so all of them happen or none.
- A transaction of the file itself also undoes the marks in it. So the marks say where that transaction began.
- Statements under LOCK TABLES share marks. So does a statement with a next one that reads its result (ROW_COUNT()).
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

from sharedvol.database.connection import Database, quoted
from sharedvol.errors import DatabaseError, LedgerError, LockLostError
from sharedvol.locks.mysql.server import Server
from sharedvol.migrations.ledger import Ledger, lock_was_lost
from sharedvol.migrations.sql import session_state
from sharedvol.migrations.sql.failure import StatementFailed
from sharedvol.migrations.sql.mysql_script import Statement
from sharedvol.migrations.sql.statements import (
    can_be_followed,
    commits_implicitly,
    is_whole,
    locks_tables,
    unlocks_tables,
    words,
    writes_rows,
)

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


class _Marks(NamedTuple):
    """Which marks surround a statement.

    Attributes:
        number: the statement, counted from 1.
        unit: the first of the statements that share the marks.
        last: the statement is the last of them.
        transaction: the statement shares one transaction with its marks.
    """

    number: int
    unit: int
    last: bool
    transaction: bool

    @property
    def first(self) -> bool:
        return self.unit == self.number


class MySQLRunner:
    """Runs files on the connection that holds the lock.

    Args:
        database: the connection.
        ledger: on the same connection, with qualified table names.
        server: the server of the connection.
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
        report: Callable[[int, Statement], object],
    ) -> None:
        """Run the statements after number ``done``, and restore the session as it was before the file.

        Args:
            statements: all statements of the file.
            row: the row of our own table that takes the marks.
            done: how many statements an earlier run ended.
            report: called before each statement, with its number counted from 1.

        Raises:
            StatementFailed: one failed. The ones before it are done, and the file's own transaction is undone.
            LockLostError: the lock was lost, and the statement was not run.
        """
        for statement in statements[:done]:
            if session_state.is_replayed(statement.text):
                self._database.run(statement.text)
        own_transactions = any(_OWN_TRANSACTIONS.search(statement.text) for statement in statements)
        for marks in _plan(statements, done, own_transactions):
            statement = statements[marks.number - 1]
            report(marks.number, statement)
            try:
                # No query within a unit, because ROW_COUNT() would return its result.
                asks = marks.first and (marks.transaction or own_transactions)
                mixed = asks and self._has_other_engines(statements)
                if marks.first and marks.transaction and not mixed:
                    self._run_in_transaction(statement.text, row, marks.number)
                else:
                    # A ROLLBACK that undoes the marks but not the rows makes every mark in the transaction wrong.
                    begun = len(statements) + 1 if mixed and own_transactions else marks.number
                    self._run_marked(statement.text, row, marks, begun)
            except DatabaseError as error:
                raise self._failed(error, statements, row, marks) from error
            if commits_implicitly(statement.text):
                self._other_engines = None  # it may have created a table
        self._settle(statements)

    def _run_in_transaction(self, text: str, row: int, number: int) -> None:
        parts = ["START TRANSACTION", self._ledger.mark_started(row, number, done=number), text, "COMMIT"]
        self._send(parts, number, text, fence=1, end=3)

    def _run_marked(self, text: str, row: int, marks: _Marks, begun: int) -> None:
        parts = [self._ledger.mark_started(row, begun)] if marks.first else []
        parts.append(text)
        end = len(parts) - 1
        if marks.last:
            parts.append(self._ledger.mark_done(row, marks.number))
            if commits_implicitly(text):
                parts.append("COMMIT")  # without it, SET autocommit = 0 would lose the mark
        self._send(parts, marks.number, text, fence=0 if marks.first else None, end=end)

    def _send(self, parts: Sequence[str], number: int, text: str, *, fence: int | None, end: int) -> None:
        """Send the parts, in one packet if possible.

        Args:
            parts: marks, and a statement of the migration.
            number: the number of that statement.
            text: the text of that statement.
            fence: the index of the fence in the parts.
            end: the index of the part after which the statement is done.
        """
        together = self._together and can_be_followed(text)
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
                raise LedgerError(f"cannot record how far the migration got: {error}") from error
            if answered > end and is_whole(text):  # otherwise it is a later result of the statement itself
                raise LedgerError(f"statement {number} is done, but this cannot be recorded: {error}") from error
            raise

    def _failed(
        self, error: DatabaseError, statements: Sequence[Statement], row: int, marks: _Marks
    ) -> StatementFailed:
        number = marks.number
        if error.lost:
            return StatementFailed(number, error, whole=False)
        text = statements[number - 1].text
        whole = marks.first and is_whole(text)
        with contextlib.suppress(DatabaseError):
            self._database.run("ROLLBACK")
            self._database.run("UNLOCK TABLES")
            # A ROLLBACK undoes everything only if the engines of all tables support it.
            self._other_engines = None
            whole = whole and (commits_implicitly(text) or not self._has_other_engines(statements))
            self._ledger.mark_failed(row, number, str(error), whole=whole)
            self._database.run("COMMIT")  # the file may have SET autocommit = 0
            return StatementFailed(number, error, whole=whole)
        return StatementFailed(number, error, whole=False)  # the connection is lost as well

    def _has_other_engines(self, statements: Sequence[Statement]) -> bool:
        """Return whether a table of the schemas that the file may use can keep half of a failed statement."""
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
        """End what the file left open and restore its settings, before the ledger and the next file."""
        self._other_engines = None
        self._database.run("UNLOCK TABLES")
        self._database.run("COMMIT")
        self._database.run(f"USE {quoted(str(self._server.schema))}")
        used = {name for statement in statements for name in _USER_VARIABLE.findall(statement.text)}
        if used:
            self._try("SET " + ", ".join(f"@`{name}` = NULL" for name in sorted(used)))
        if any(words(statement.text)[0] in _SETS or ";" in statement.text for statement in statements):
            for name, value in self._read_settings().items():
                before = self._settings.get(name, value)
                if before != value:
                    number = re.fullmatch(r"-?\d+(\.\d+)?", before)
                    literal = before if number else "'" + before.replace("'", "''") + "'"
                    self._try(f"SET SESSION {name} = {literal}")
            self._try("SET SESSION timestamp = DEFAULT")

    def _try(self, text: str) -> None:
        try:
            self._database.run(text)
        except DatabaseError as error:
            if error.lost:
                raise
            # Then the file did not set it either: it is a setting of the server, or this account may not set it.

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


def _plan(statements: Sequence[Statement], done: int, own_transactions: bool) -> Iterator[_Marks]:
    """Yield the marks of each statement after number ``done``."""
    unit, locked = 0, False
    for number, statement in enumerate(statements[done:], done + 1):
        text = statement.text
        unit = unit or number
        locked = (locked or locks_tables(text)) and not unlocks_tables(text)
        is_read_next = number < len(statements) and _LOOKS_BACK.search(statements[number].text)
        last = not locked and not is_read_next
        transaction = last and not own_transactions and writes_rows(text) and can_be_followed(text)
        yield _Marks(number, unit, last, transaction)
        if last:
            unit = 0
