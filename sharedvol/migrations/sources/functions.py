"""Migrations that are Python functions, each recorded by its name."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

from sharedvol.database.connection import Database
from sharedvol.errors import ManifestError
from sharedvol.migrations.ledger import Ledger
from sharedvol.migrations.ledger_names import check_names
from sharedvol.migrations.records import Records
from sharedvol.migrations.sources.base import Session, begin_at, check_resume_at, replica_name, writable_ledger
from sharedvol.migrations.status import HalfApplied, Step, Survey

if TYPE_CHECKING:
    from sqlalchemy import Connection


class PythonMigrations:
    """Functions that are called once each with an SQLAlchemy ``Connection``, and recorded by name.

    ::

        PythonMigrations({"2026_01_fill_totals": fill_totals})

    The connection is the one that holds the lock, in a transaction that is committed after the function. A function
    that failed or was interrupted is not called again, because DDL commits what came before it. Set ``repeatable`` if
    all functions can be called again.

    Args:
        functions: the functions by name, in order.
        repeatable: a function may be called again after it failed.
    """

    def __init__(self, functions: Mapping[str, Callable[[Connection], object]], *, repeatable: bool = False) -> None:
        self.label = "Python functions"
        self._functions = dict(functions)
        self._repeatable = repeatable

    def load(self) -> list[str]:
        """Return the names in order.

        Raises:
            ManifestError: the ledger cannot hold one of them.
        """
        for name in self._functions:
            if not name or len(name) > 255 or not name.isprintable():
                raise ManifestError(f"the ledger cannot hold the name {name!r}: 1 to 255 printable characters")
        return list(self._functions)

    def survey(self, database: Database) -> Survey:
        """Return which functions are pending.

        Raises:
            LedgerError: the ledger cannot be read.
        """
        return self._survey(Ledger(database).read())

    def _survey(self, records: Records) -> Survey:
        pending = [name for name in self._functions if not records.applied.get(name)]
        progress = records.progress or {}
        half = [
            HalfApplied(
                name, 1, 0, 1, 0, "", progress[name].error,
                None if self._repeatable else "the function began, and it is not known what it did",
            )
            for name in pending
            if name in progress and progress[name].half_applied
        ]  # fmt: skip
        return Survey(names=list(self._functions), pending=pending, half_applied=half)

    def apply(self, session: Session, survey: Survey) -> Iterator[str]:
        """Call the pending functions. Yield each name once it is applied and recorded.

        Raises:
            HalfAppliedError: a function began earlier and may not be called again.
            LedgerError, LockLostError: the ledger cannot be written, or the lock was lost.
            Exception: what a function raised.
        """
        ledger = writable_ledger(session)
        records = ledger.read()
        done = {one.name: begin_at(one, session) for one in survey.half_applied}
        check_resume_at(session, survey, dict.fromkeys(survey.pending, 1))
        ledger.create(records.exists)
        check_names(ledger, {*self._functions, *records.applied})
        for number, name in enumerate(survey.pending, 1):
            begun = time.monotonic()
            session.report(Step("started", name, number, len(survey.pending), 0, 1))
            row = ledger.begin(name, "", (), replica_name(), 0)
            session.database.run(ledger.mark_started(row, 1))
            if not done.get(name):  # otherwise a person found that it is done
                self._call(session, ledger, row, name)
            ledger.record(name, row, records)
            seconds = time.monotonic() - begun
            session.report(Step("applied", name, number, len(survey.pending), 1, 1, seconds=seconds))
            yield name

    def _call(self, session: Session, ledger: Ledger, row: int, name: str) -> None:
        try:
            with session.database.sqlalchemy() as connection:
                self._functions[name](connection)
                connection.commit()
        except Exception as error:
            ledger.mark_failed(row, 1, f"{type(error).__name__}: {error}", whole=False)
            raise
