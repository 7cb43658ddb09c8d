"""Migrations from a directory of SQL files."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from sharedvol.database.connection import Database
from sharedvol.errors import DatabaseError, HalfAppliedError, LedgerError, LockLostError, ManifestError, ScriptError
from sharedvol.locks.mysql.server import Server
from sharedvol.migrations.ledger import Ledger, digest
from sharedvol.migrations.ledger_names import check_names
from sharedvol.migrations.manifest import MigrationFile, read_directory
from sharedvol.migrations.partial import heading_of, inspect_half_applied
from sharedvol.migrations.records import ProgressRow, Records
from sharedvol.migrations.sources.base import Session, begin_at, check_resume_at, replica_name, writable_ledger
from sharedvol.migrations.sql.failure import StatementFailed
from sharedvol.migrations.sql.mysql_runner import MySQLRunner
from sharedvol.migrations.sql.mysql_script import Statement
from sharedvol.migrations.sql.sqlite_runner import SQLiteRunner
from sharedvol.migrations.sql.sqlite_script import split_sqlite
from sharedvol.migrations.sql.statements import is_repeatable
from sharedvol.migrations.status import HalfApplied, Step, Survey

_log = logging.getLogger(__name__)

_Split = Callable[[MigrationFile], list[Statement]]


@dataclass(frozen=True)
class _Run:
    """What applying each file needs."""

    session: Session
    ledger: Ledger
    runner: MySQLRunner | SQLiteRunner
    records: Records


class Directory:
    """A directory of ``*.sql`` files.

    Args:
        directory: the path of the directory.
        renames: old names of files, with the new names of the same files.
    """

    def __init__(self, directory: str | os.PathLike[str], renames: Mapping[str, str] | None = None) -> None:
        self.label = os.fspath(directory)
        self._renames = {old: _last_name(old, renames or {}) for old in renames or {}}
        self._files: dict[str, MigrationFile] = {}

    def load(self) -> list[str]:
        """Read the files. Return their names in order.

        Raises:
            ManifestError: one of them cannot be read.
        """
        self._files = {file.name: file for file in read_directory(self.label)}
        return list(self._files)

    def survey(self, database: Database) -> Survey:
        """Return which files are pending.

        Raises:
            LedgerError: the ledger cannot be read.
        """
        ledger = Ledger(database)
        records = ledger.read()
        return self._survey(ledger, records, self._splitter(database, None))

    def count(self, database: Database, survey: Survey) -> Survey:
        """Return ``survey`` with the number of statements of each pending file."""
        scripts = self._scripts(survey.pending, self._splitter(database, None))
        return replace(survey, statements={name: len(script) for name, script in scripts.items()})

    def apply(self, session: Session, survey: Survey) -> Iterator[str]:
        """Apply the pending files. Yield each name once it is applied and recorded.

        Raises:
            ManifestError: a file cannot be split. Nothing was changed.
            HalfAppliedError: a file began earlier and cannot be resumed. Nothing was changed.
            LedgerError, LockLostError, DatabaseError, StatementFailed: a file failed.
        """
        ledger = writable_ledger(session)
        records = ledger.read()
        split = self._splitter(session.database, session.server)
        # Split all files before anything is changed: a mistake in the last one must not leave half a release.
        scripts = {name: split(self._files[name]) for name in survey.pending}
        begins = {one.name: begin_at(one, session) for one in survey.half_applied}
        check_resume_at(session, survey, {name: len(script) for name, script in scripts.items()})
        ledger.create(records.exists)
        records = self._rename(session, ledger, records)
        survey = self._survey(ledger, records, split)
        self._check_beginnings(session, ledger, records, {name: scripts[name] for name in survey.pending})
        run = _Run(session, ledger, _runner_for(session, ledger), records)
        for number, name in enumerate(survey.pending, 1):
            step = Step("started", name, number, len(survey.pending), begins.get(name, 0), len(scripts[name]))
            self._apply_one(run, scripts[name], step)
            yield name
        self._adopt(ledger, records)

    def _rename(self, session: Session, ledger: Ledger, records: Records) -> Records:
        """Rename the rows that are due. Return what the tables contain afterwards."""
        due = self._due_renames(records)
        check_names(ledger, {*self._files, *records.applied} - {old for old, _ in due})
        for old, new in due:
            ledger.rename(old, new, records)
            records = ledger.read()  # two old names may have become one new name
            session.report(Step("renamed", new, detail=old))
            _log.info("migration %s is now %s", old, new)
        return ledger.read()

    def _check_beginnings(
        self, session: Session, ledger: Ledger, records: Records, scripts: Mapping[str, Sequence[Statement]]
    ) -> None:
        if session.half_applied == "rerun":
            return
        for name, statements in scripts.items():
            if name not in session.resume_at:
                _refuse_other_name(ledger, records, name, statements, self._files)

    def _apply_one(self, run: _Run, statements: Sequence[Statement], started: Step) -> None:
        name, done = started.name, started.statement
        begun = time.monotonic()

        def report(number: int, statement: Statement) -> None:
            run.session.report(
                replace(started, kind="statement", statement=number, line=statement.line, detail=heading_of(statement))
            )

        run.session.report(started)
        try:
            row = run.ledger.begin(name, self._files[name].checksum, statements, replica_name(), done)
            run.runner.run(statements, row, done, report)
            run.ledger.record(name, row, run.records)
        except (StatementFailed, DatabaseError, LedgerError, LockLostError) as error:
            raise _failure(error, name, statements) from error
        seconds = time.monotonic() - begun
        run.session.report(replace(started, kind="applied", statement=len(statements), seconds=seconds))
        _log.info("migration %s applied: %d statements in %.3f s", name, len(statements) - done, seconds)

    def _adopt(self, ledger: Ledger, records: Records) -> None:
        """Record the texts of migrations that another program applied."""
        for name in sorted(records.succeeded & set(self._files) - set(records.progress or ())):
            ledger.adopt(name, self._files[name].checksum)

    def _survey(self, ledger: Ledger, records: Records, split: _Split) -> Survey:
        pending = [name for name in self._files if name not in records.succeeded]
        if pending and records.progress is None:
            raise LedgerError(
                "this account may not read the table sharedvol_migration, which tells how far the pending migrations "
                "got: grant SELECT on it"
            )
        progress = self._renamed_progress(records)
        return Survey(
            names=list(self._files),
            pending=pending,
            renames=self._due_renames(records),
            ahead=self._ahead(records.succeeded, progress),
            drifted=[name for name in self._files if name in records.succeeded and self._is_drifted(name, progress)],
            half_applied=self._half_applied(ledger, [progress[name] for name in pending if name in progress], split),
        )

    def _renamed_progress(self, records: Records) -> dict[str, ProgressRow]:
        """Return our rows under the names that they will have after the renames that are due."""
        progress = dict(records.progress or {})
        for old, new in self._due_renames(records):
            if old in progress and new not in progress:
                progress[new] = replace(progress.pop(old), name=new)
        return progress

    def _is_drifted(self, name: str, progress: Mapping[str, ProgressRow]) -> bool:
        row = progress.get(name)
        # A function of that name has no checksum.
        return bool(row and row.applied and row.checksum and row.checksum != self._files[name].checksum)

    def _ahead(self, applied: set[str], progress: Mapping[str, ProgressRow]) -> list[str]:
        renamed = {old for old, new in self._renames.items() if new in self._files}
        functions = {name for name, row in progress.items() if not row.checksum}
        return sorted(applied - set(self._files) - renamed - functions)

    def _half_applied(self, ledger: Ledger, rows: Sequence[ProgressRow], split: _Split) -> list[HalfApplied]:
        half = [row for row in rows if row.half_applied]
        scripts = self._scripts([row.name for row in half], split)
        return [inspect_half_applied(ledger, row, scripts.get(row.name)) for row in half]

    def _scripts(self, names: Collection[str], split: _Split) -> dict[str, list[Statement]]:
        """Return the statements of the files that can be split. `apply` raises the error of one that cannot."""
        scripts = {}
        for name in names:
            with contextlib.suppress(ManifestError):
                scripts[name] = split(self._files[name])
        return scripts

    def _due_renames(self, records: Records) -> list[tuple[str, str]]:
        return [
            (old, new)
            for old, new in self._renames.items()
            if (old in records.applied or old in (records.progress or ()))
            and new in self._files
            and old not in self._files
        ]

    def _splitter(self, database: Database, server: Server | None) -> _Split:
        if database.kind == "sqlite":
            return _split_for_sqlite
        if server is not None:
            return lambda file: file.statements(backslash_escapes=server.backslash_escapes)

        escapes: bool | None = None

        def query_and_split(file: MigrationFile) -> list[Statement]:
            nonlocal escapes
            if escapes is None:  # only once a file has to be split, so that the fast path has no more queries
                ((mode,),) = database.query("SELECT @@SESSION.sql_mode")
                escapes = "NO_BACKSLASH_ESCAPES" not in str(mode)
            return file.statements(backslash_escapes=escapes)

        return query_and_split


def _last_name(old: str, renames: Mapping[str, str]) -> str:
    """Return the name of ``old`` after all renames, because a database may have skipped the release of one."""
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
    """Return ``error`` with the place where it happened, and with what the next start will do."""
    if isinstance(error, LockLostError):
        return LockLostError(f"{name}: {error}")
    if isinstance(error, LedgerError):
        return LedgerError(f"{name}: {error}")
    if isinstance(error, DatabaseError):
        return DatabaseError(f"{name}: {error}", error.code, lost=error.lost)
    statement = statements[error.number - 1]
    where = f"{name}: statement {error.number} of {len(statements)} (line {statement.line}, {heading_of(statement)})"
    if error.cause.lost:
        then = "the connection is lost; the next start will check whether the statement was done"
    elif error.whole:
        then = "nothing of that statement remains; fix the cause and start again to resume there"
    else:
        then = "what it did before it failed may remain; check the database before you resume"
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
    """Refuse to begin a file whose beginning has already run under a name that no longer exists."""
    progress = records.progress or {}
    if name in progress:
        return
    now = [digest(statement) for statement in statements]
    for row in progress.values():
        begun = row.done if row.error_at else max(row.done, row.started)
        if row.applied or row.name in records.applied or row.name in names or not 0 < begun <= len(now):
            continue
        harmless = all(is_repeatable(statement.text) for statement in statements[:begun])
        if not harmless and ledger.digests(row)[:begun] == now[:begun]:
            raise HalfAppliedError(
                f"{name!r} begins as {row.name!r} does, which stopped behind {row.done} statements: if it is the same "
                "file, say so in renames; if what it did was undone, delete its row from sharedvol_migration"
            )


def _runner_for(session: Session, ledger: Ledger) -> MySQLRunner | SQLiteRunner:
    if session.server is None:
        return SQLiteRunner(session.database, ledger)
    return MySQLRunner(session.database, ledger, session.server)
