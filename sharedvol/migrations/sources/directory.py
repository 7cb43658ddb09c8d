"""A directory of SQL files as migrations."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace

from sharedvol.database.connection import Database
from sharedvol.errors import DatabaseError, HalfAppliedError, LedgerError, LockLostError, ManifestError, ScriptError
from sharedvol.locks.mysql.server import Server
from sharedvol.migrations.ledger import Ledger, Records, digest
from sharedvol.migrations.manifest import MigrationFile, read_directory
from sharedvol.migrations.partial import look_at_half, named
from sharedvol.migrations.sources.base import Session, begin_at, ledger_for, refuse_clashes, refuse_resumes, replica
from sharedvol.migrations.sql import statements as kinds
from sharedvol.migrations.sql.mysql_runner import MySQLRunner, SQLiteRunner, StatementFailed
from sharedvol.migrations.sql.mysql_script import Statement
from sharedvol.migrations.sql.sqlite_script import split_sqlite
from sharedvol.migrations.status import Step, Survey

_log = logging.getLogger(__name__)


class Directory:
    """A directory of ``*.sql`` files.

    Args:
        directory: where they are.
        renames: old names and the new ones of the same files.
    """

    def __init__(self, directory: str | os.PathLike[str], renames: Mapping[str, str] | None = None) -> None:
        self.label = os.fspath(directory)
        self._renames = {old: _last_name(old, renames or {}) for old in renames or {}}
        self._files: dict[str, MigrationFile] = {}

    def load(self) -> list[str]:
        self._files = {file.name: file for file in read_directory(self.label)}
        return list(self._files)

    def survey(self, database: Database) -> Survey:
        ledger = Ledger(database)
        records = ledger.read()
        return self._survey(ledger, records, self._split(database, None))

    def count(self, database: Database, survey: Survey) -> Survey:
        """``survey`` with the number of statements of each pending file."""
        scripts = self._scripts(survey.pending, self._split(database, None))
        return replace(survey, statements={name: len(script) for name, script in scripts.items()})

    def apply(self, session: Session, survey: Survey) -> Iterator[str]:
        ledger = ledger_for(session)
        records = ledger.read()
        split = self._split(session.database, session.server)
        # All of them, before anything is changed: a mistake in the last one must not leave half a release.
        scripts = {name: split(self._files[name]) for name in survey.pending}
        begins = {one.name: begin_at(one, session) for one in survey.half_applied}
        refuse_resumes(session, survey, {name: len(script) for name, script in scripts.items()})
        ledger.create(records.exists)
        due = self._due(records)
        refuse_clashes(ledger, {*self._files, *records.applied} - {old for old, _ in due})
        for old, new in due:
            ledger.rename(old, new, records)
            records = ledger.read()  # two old names may have come to one new one
            session.tell(Step("renamed", new, detail=old))
            _log.info("migration %s is now %s", old, new)
        records = ledger.read()
        survey = self._survey(ledger, records, split)
        for name in survey.pending if session.half_applied != "rerun" else ():
            if name in session.resume_at:
                continue
            _refuse_other_name(ledger, records, name, scripts[name], self._files)
        runner = _runner_for(session, ledger)
        for number, name in enumerate(survey.pending, 1):
            done = begins.get(name, 0)
            self._apply_one(session, ledger, runner, records, scripts[name], name, done, number, len(survey.pending))
            yield name
        for name in sorted(set(records.applied) & set(self._files) - set(records.progress or ())):
            if records.applied[name]:
                ledger.adopt(name, self._files[name].checksum)

    def _apply_one(
        self,
        session: Session,
        ledger: Ledger,
        runner: MySQLRunner | SQLiteRunner,
        records: Records,
        statements: Sequence[Statement],
        name: str,
        done: int,
        number: int,
        of: int,
    ) -> None:
        begun = time.monotonic()

        def tell(statement: int, what: Statement) -> None:
            step = Step("statement", name, number, of, statement, len(statements), what.line, detail=named(what))
            session.tell(step)

        session.tell(Step("started", name, number, of, done, len(statements)))
        try:
            row = ledger.begin(name, self._files[name].checksum, statements, replica(), done)
            runner.run(statements, row, done, tell)
            ledger.record(name, row, records)
        except (StatementFailed, DatabaseError, LedgerError, LockLostError) as error:
            raise _failure(error, name, statements) from error
        seconds = time.monotonic() - begun
        session.tell(Step("applied", name, number, of, len(statements), len(statements), seconds=seconds))
        _log.info("migration %s applied: %d statements in %.3f s", name, len(statements) - done, seconds)

    def _survey(self, ledger: Ledger, records: Records, split: Callable[[MigrationFile], list[Statement]]) -> Survey:
        applied = {name for name, success in records.applied.items() if success}
        pending = [name for name in self._files if name not in applied]
        if pending and records.progress is None:
            raise LedgerError(
                "this account may not read the table sharedvol_migration, which tells how far the pending migrations "
                "got: grant SELECT on it"
            )
        progress = dict(records.progress or {})
        for old, new in self._due(records):
            if old in progress and new not in progress:
                progress[new] = replace(progress.pop(old), name=new)
        drifted = [
            name
            for name in self._files
            if name in applied and name in progress and progress[name].applied and progress[name].checksum
            # Empty where it was applied by a function of that name.
            if progress[name].checksum != self._files[name].checksum
        ]
        begun = [
            name for name in pending if name in progress and not progress[name].applied and progress[name].started > 0
        ]
        scripts = self._scripts(begun, split)
        half = [look_at_half(ledger, progress[name], scripts.get(name)) for name in begun]
        renamed = {old for old, new in self._renames.items() if new in self._files}
        functions = {name for name, row in progress.items() if not row.checksum}
        return Survey(
            names=list(self._files),
            pending=pending,
            renames=self._due(records),
            ahead=sorted(applied - set(self._files) - renamed - functions),
            drifted=drifted,
            half_applied=half,
        )

    def _scripts(
        self, names: Collection[str], split: Callable[[MigrationFile], list[Statement]]
    ) -> dict[str, list[Statement]]:
        """The statements of those that can be taken apart; `apply` raises the error of one that cannot."""
        scripts = {}
        for name in names:
            with contextlib.suppress(ManifestError):
                scripts[name] = split(self._files[name])
        return scripts

    def _due(self, records: Records) -> list[tuple[str, str]]:
        return [
            (old, new)
            for old, new in self._renames.items()
            if (old in records.applied or old in (records.progress or ()))
            and new in self._files
            and old not in self._files
        ]

    def _split(self, database: Database, server: Server | None) -> Callable[[MigrationFile], list[Statement]]:
        if database.kind == "sqlite":
            return _split_for_sqlite
        if server is not None:
            return lambda file: file.statements(backslash_escapes=server.backslash_escapes)

        escapes: bool | None = None

        def ask_and_split(file: MigrationFile) -> list[Statement]:
            nonlocal escapes
            if escapes is None:  # only where a file is to be taken apart: the fast path is to stay one
                ((mode,),) = database.query("SELECT @@SESSION.sql_mode")
                escapes = "NO_BACKSLASH_ESCAPES" not in str(mode)
            return file.statements(backslash_escapes=escapes)

        return ask_and_split


def _last_name(old: str, renames: Mapping[str, str]) -> str:
    """What ``old`` is called after all renames: a database may have missed the release of one."""
    name, seen = renames[old], {old}
    while name in renames:
        if name in seen:
            raise ValueError(f"renames lead from {old!r} back to {name!r}")
        seen.add(name)
        name = renames[name]
    return name


def _failure(
    error: StatementFailed | DatabaseError | LedgerError | LockLostError, name: str, statements: Sequence[Statement]
) -> Exception:
    """``error`` in words that say where, and what a new start would do."""
    if isinstance(error, LockLostError):
        return LockLostError(f"{name}: {error}")
    if isinstance(error, LedgerError):
        return LedgerError(f"{name}: {error}")
    if isinstance(error, DatabaseError):
        return DatabaseError(f"{name}: {error}", error.code, lost=error.lost)
    statement = statements[error.number - 1]
    where = f"{name}: statement {error.number} of {len(statements)} (line {statement.line}, {named(statement)})"
    if error.cause.lost:
        then = "the connection is gone, so whether the statement was done will be seen at the next start"
    elif error.whole:
        then = "nothing of that statement remains: mend the cause and start again, it goes on from there"
    else:
        then = "what it did before it failed may remain: look at the database before you go on"
    failed = StatementFailed(error.number, error.cause, whole=error.whole)
    failed.args = (f"{where} failed: {error}; {then}",)
    return failed


def _split_for_sqlite(file: MigrationFile) -> list[Statement]:
    try:
        return split_sqlite(file.text)
    except ScriptError as error:
        raise ManifestError(f"{str(file.path)!r}, {error}") from error


def _refuse_other_name(
    ledger: Ledger, records: Records, name: str, statements: Sequence[Statement], names: Collection[str]
) -> None:
    """Refuse to begin a file whose beginning has been run already, under a name that is no more."""
    progress = records.progress or {}
    if name in progress:
        return
    now = [digest(statement) for statement in statements]
    for row in progress.values():
        begun = row.done if row.error_at else max(row.done, row.started)
        if row.applied or row.name in records.applied or row.name in names or not 0 < begun <= len(now):
            continue
        harmless = all(kinds.is_repeatable(statement.text) for statement in statements[:begun])
        if not harmless and ledger.digests(row)[:begun] == now[:begun]:
            raise HalfAppliedError(
                f"{name!r} begins as {row.name!r} does, which stopped behind {row.done} statements: if it is the same "
                "file, say so in renames; if what it did was undone, delete its row from sharedvol_migration"
            )


def _runner_for(session: Session, ledger: Ledger) -> MySQLRunner | SQLiteRunner:
    if session.server is None:
        return SQLiteRunner(session.database, ledger)
    return MySQLRunner(session.database, ledger, session.server)
