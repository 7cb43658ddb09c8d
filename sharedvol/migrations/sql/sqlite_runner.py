"""Run a migration file on SQLite, where every statement can be undone."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Final

from sharedvol.database.connection import Database
from sharedvol.errors import DatabaseError
from sharedvol.migrations.ledger import Ledger
from sharedvol.migrations.sql.failure import StatementFailed
from sharedvol.migrations.sql.mysql_script import Statement
from sharedvol.migrations.sql.statements import words

_NOT_IN_A_TRANSACTION: Final = ("PRAGMA", "VACUUM", "ATTACH", "DETACH", "BEGIN", "COMMIT", "END", "ROLLBACK")


class SQLiteRunner:
    """Runs files on the connection to an SQLite database.

    Args:
        database: the connection.
        ledger: on the same connection.
    """

    def __init__(self, database: Database, ledger: Ledger) -> None:
        self._database, self._ledger = database, ledger

    def run(
        self,
        statements: Sequence[Statement],
        row: int,
        done: int,
        report: Callable[[int, Statement], object],
    ) -> None:
        """Run the statements after number ``done``, as `MySQLRunner.run` does.

        Raises:
            StatementFailed: one failed. The ones before it are done.
        """
        for statement in statements[:done]:
            if words(statement.text)[0] in ("PRAGMA", "ATTACH"):
                self._database.run(statement.text)
        for number, statement in enumerate(statements[done:], done + 1):
            report(number, statement)
            try:
                self._run_one(statement.text, row, number)
            except DatabaseError as error:
                with contextlib.suppress(DatabaseError):
                    if self._database.raw.in_transaction:
                        self._database.run("ROLLBACK")
                    self._ledger.mark_failed(row, number, str(error), whole=True)
                raise StatementFailed(number, error, whole=True) from error
        if self._database.raw.in_transaction:
            self._database.run("COMMIT")

    def _run_one(self, text: str, row: int, number: int) -> None:
        by_itself = words(text)[0] in _NOT_IN_A_TRANSACTION
        own = not self._database.raw.in_transaction and not by_itself
        if own:
            self._database.run("BEGIN IMMEDIATE")
        if not by_itself or words(text)[0] in ("COMMIT", "END"):  # SQLite refuses to run these twice
            self._database.run(self._ledger.mark_started(row, number, done=number))
            self._database.run(text)
        else:
            self._database.run(self._ledger.mark_started(row, number))
            self._database.run(text)
            self._database.run(self._ledger.mark_done(row, number))
        if own:
            self._database.run("COMMIT")
