"""Migrations that the ledger records by name: SQL files of a directory, or Python functions."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol

from sharedvol.database import Database
from sharedvol.errors import DatabaseError, HalfAppliedError, LedgerError, LockLostError, ManifestError, ScriptError
from sharedvol.identity import whoami
from sharedvol.locks.mysql import Server
from sharedvol.migrations import resuming
from sharedvol.migrations import statements as kinds
from sharedvol.migrations.ledger import Ledger, Progress, Records, digest
from sharedvol.migrations.manifest import MigrationFile, read_directory
from sharedvol.migrations.runner import MySQLRunner, SQLiteRunner, StatementFailed
from sharedvol.migrations.script import Statement
from sharedvol.migrations.sqlite_script import split_sqlite
from sharedvol.migrations.status import HalfApplied, Step, Survey

if TYPE_CHECKING:
    from sqlalchemy import Connection

HalfAppliedPolicy = Literal["resume", "refuse", "rerun"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Session:
    """What applying needs: the connection that holds the lock, and what was asked for.

    Attributes:
        database: the connection.
        server: what it leads to; None for SQLite.
        lock_name: the lock's name on the server; None for SQLite.
        half_applied: what to do with a migration that began earlier and did not end.
        resume_at: names with the statement to go on at, as a person decided.
        tell: called with each `Step`.
    """

    database: Database
    server: Server | None
    lock_name: str | None
    half_applied: HalfAppliedPolicy
    resume_at: Mapping[str, int]
    tell: Callable[[Step], object]


class Source(Protocol):
    """A kind of migration."""

    label: str

    def load(self) -> list[str]:
        """The names of the image's migrations, in order. Raises `ManifestError`."""

    def survey(self, database: Database) -> Survey:
        """What of them is pending. Changes nothing. Raises `LedgerError`."""

    def apply(self, session: Session, survey: Survey) -> Iterator[str]:
        """Apply what is pending, and give each name once it is applied and recorded."""


class Directory:
    """A directory of ``*.sql`` files.

    Args:
        directory: where they are.
        renames: old names and the new ones of the same files.
    """

    def __init__(self, directory: str | os.PathLike[str], renames: Mapping[str, str] | None = None) -> None:
        self.label = os.fspath(directory)
        self._renames = dict(renames or {})
        self._files: dict[str, MigrationFile] = {}

    def load(self) -> list[str]:
        self._files = {file.name: file for file in read_directory(self.label)}
        return list(self._files)

    def survey(self, database: Database) -> Survey:
        ledger = Ledger(database)
        records = ledger.read()
        return self._survey(ledger, records, self._split(database, None))

    def apply(self, session: Session, survey: Survey) -> Iterator[str]:
        ledger = _ledger_for(session)
        records = ledger.read()
        split = self._split(session.database, session.server)
        # All of them, before anything is changed: a mistake in the last one must not leave half a release.
        scripts = {name: split(self._files[name]) for name in survey.pending}
        begins = {one.name: _begin_at(one, session) for one in survey.half_applied}
        for name, number in session.resume_at.items():
            if name in scripts and not 1 <= number <= len(scripts[name]) + 1:
                raise HalfAppliedError(f"{name!r} has {len(scripts[name])} statements: it cannot go on at {number}")
        ledger.create(records.exists)
        due = self._due(records)
        _refuse_clashes(ledger, {*self._files, *records.applied} - {old for old, _ in due})
        for old, new in due:
            ledger.rename(old, new, records)
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
            done = max(0, session.resume_at.get(name, begins.get(name, 0) + 1) - 1)
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
            step = Step("statement", name, number, of, statement, len(statements), what.line, detail=_named(what))
            session.tell(step)

        session.tell(Step("started", name, number, of, done, len(statements)))
        try:
            row = ledger.begin(name, self._files[name].checksum, statements, _replica(), done)
            runner.run(statements, row, done, tell)
            ledger.record(name, row, records)
        except (StatementFailed, DatabaseError, LedgerError, LockLostError) as error:
            raise _failure(error, name, statements) from error
        seconds = time.monotonic() - begun
        session.tell(Step("applied", name, number, of, len(statements), len(statements), seconds=seconds))
        _log.info("migration %s applied: %d statements in %.3f s", name, len(statements) - done, seconds)

    def _survey(self, ledger: Ledger, records: Records, split: Callable[[MigrationFile], list[Statement]]) -> Survey:
        applied = {name for name, success in records.applied.items() if success}
        pending = tuple(name for name in self._files if name not in applied)
        if pending and records.progress is None:
            raise LedgerError(
                "this account may not read the table sharedvol_migration, which tells how far the pending migrations "
                "got: grant SELECT on it"
            )
        progress = dict(records.progress or {})
        for old, new in self._due(records):
            if old in progress and new not in progress:
                progress[new] = replace(progress.pop(old), name=new)
        drifted = tuple(
            name
            for name in self._files
            if name in applied and name in progress and progress[name].applied and progress[name].checksum
            # Empty where it was applied by a function of that name.
            if progress[name].checksum != self._files[name].checksum
        )
        half = tuple(
            _half_applied(ledger, progress[name], split(self._files[name]))
            for name in pending
            if name in progress and not progress[name].applied and progress[name].started > 0
        )
        return Survey(
            names=tuple(self._files),
            pending=pending,
            renames=tuple(self._due(records)),
            ahead=tuple(sorted(applied - set(self._files) - set(self._renames))),
            drifted=drifted,
            half_applied=half,
        )

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

        def ask_and_split(file: MigrationFile) -> list[Statement]:
            # Only where a file is to be taken apart: the fast path is to stay one.
            ((mode,),) = database.query("SELECT @@SESSION.sql_mode")
            return file.statements(backslash_escapes="NO_BACKSLASH_ESCAPES" not in str(mode))

        return ask_and_split


class PythonMigrations:
    """Functions, each of which is called once with an SQLAlchemy ``Connection``, and recorded by its name.

    ::

        PythonMigrations({"2026_01_fill_totals": fill_totals})

    The connection is the one that holds the lock, in a transaction that is committed behind the function. A
    function that failed or was interrupted is not called again by itself, as DDL commits what came before it:
    unless ``repeatable`` says that all of them can be.

    Args:
        functions: by name, in order.
        repeatable: a function may be called again after it failed.
    """

    def __init__(self, functions: Mapping[str, Callable[[Connection], object]], *, repeatable: bool = False) -> None:
        self.label = "Python functions"
        self._functions = dict(functions)
        self._repeatable = repeatable

    def load(self) -> list[str]:
        for name in self._functions:
            if not name or len(name) > 255 or not name.isprintable():
                raise ManifestError(f"the ledger cannot hold the name {name!r}: 1 to 255 printable characters")
        return list(self._functions)

    def survey(self, database: Database) -> Survey:
        return self._survey(Ledger(database).read())

    def _survey(self, records: Records) -> Survey:
        pending = tuple(name for name in self._functions if not records.applied.get(name))
        progress = records.progress or {}
        half = tuple(
            HalfApplied(
                name, 1, 0, 1, 0, "", progress[name].error,
                None if self._repeatable else "the function was begun and what it did before it ended is not known",
            )
            for name in pending
            if name in progress and not progress[name].applied and progress[name].started > 0
        )  # fmt: skip
        return Survey(names=tuple(self._functions), pending=pending, half_applied=half)

    def apply(self, session: Session, survey: Survey) -> Iterator[str]:
        ledger = _ledger_for(session)
        records = ledger.read()
        for one in survey.half_applied:
            _begin_at(one, session)
        ledger.create(records.exists)
        _refuse_clashes(ledger, {*self._functions, *records.applied})
        for number, name in enumerate(survey.pending, 1):
            begun = time.monotonic()
            session.tell(Step("started", name, number, len(survey.pending), 0, 1))
            row = ledger.begin(name, "", (), _replica(), 0)
            session.database.run(ledger.mark_started(row, 1))
            try:
                with session.database.sqlalchemy() as connection:
                    self._functions[name](connection)
                    connection.commit()
            except Exception as error:
                ledger.mark_failed(row, 1, f"{type(error).__name__}: {error}", whole=False)
                raise
            ledger.record(name, row, records)
            seconds = time.monotonic() - begun
            session.tell(Step("applied", name, number, len(survey.pending), 1, 1, seconds=seconds))
            yield name


def _begin_at(one: HalfApplied, session: Session) -> int:
    """How many statements of a half-applied migration to leave out.

    Raises:
        HalfAppliedError: it is not to be, or cannot be, gone on with.
    """
    if one.name in session.resume_at:
        return session.resume_at[one.name] - 1
    if session.half_applied == "rerun":
        return 0
    if session.half_applied == "resume" and one.obstacle is None:
        _log.warning("migration %s goes on where it stopped: %s", one.name, one)
        return one.next - 1
    raise HalfAppliedError(
        f"half-applied migration {one}. Look at the database; then go on with --resume-at {one.name}:{one.next} "
        f"(resume_at) if that statement has not been done, {one.name}:{one.next + 1} if it has, or undo the rest by "
        "hand and say --half-applied rerun"
    )


def _half_applied(ledger: Ledger, row: Progress, statements: Sequence[Statement]) -> HalfApplied:
    """How far a migration got, and whether it can be gone on with exactly there."""
    before = ledger.digests(row)
    now = [digest(statement) for statement in statements]
    following, obstacle = row.done + 1, None
    if before[: row.done] != now[: row.done]:
        obstacle = f"its first {row.done} statements, which were run, are others now"
    elif row.started > row.done and row.error_at <= row.done:
        # It was begun, and neither its end nor its failure was written down.
        same = row.started <= len(now) and before[row.started - 1] == now[row.started - 1]
        if not (same and row.started == following and kinds.is_repeatable(statements[row.started - 1].text)):
            obstacle = f"statement {row.started} was begun and it is not known whether it was done"
        if row.started > row.statements:
            obstacle = "what was begun behind them may have written to a table whose engine cannot undo it"
    obstacle = obstacle or resuming.obstacle(statements, row.done)
    upcoming = statements[following - 1] if following <= len(statements) else None
    return HalfApplied(
        name=row.name,
        statements=len(statements),
        done=row.done,
        next=following,
        line=upcoming.line if upcoming else 0,
        words=_named(upcoming) if upcoming else "",
        error=row.error,
        obstacle=obstacle,
    )


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
    where = f"{name}: statement {error.number} of {len(statements)} (line {statement.line}, {_named(statement)})"
    if error.cause.lost:
        then = "the connection is gone, so whether the statement was done will be seen at the next start"
    elif error.whole:
        then = "nothing of that statement remains: mend the cause and start again, it goes on from there"
    else:
        then = "what it did before it failed may remain: look at the database before you go on"
    failed = StatementFailed(error.number, error.cause, whole=error.whole)
    failed.args = (f"{where} failed: {error}; {then}",)
    return failed


def _named(statement: Statement) -> str:
    """The first words of a statement, without its values."""
    return kinds.heading(statement.text) or "statement"


def _split_for_sqlite(file: MigrationFile) -> list[Statement]:
    try:
        return split_sqlite(file.text)
    except ScriptError as error:
        raise ManifestError(f"{str(file.path)!r}, {error}") from error


def _refuse_clashes(ledger: Ledger, names: Collection[str]) -> None:
    for one, other in ledger.clashes(names):
        raise LedgerError(
            f"the ledger cannot tell {one!r} from {other!r}: its column compares without case or accents, so the "
            "second would be run and not be recorded; rename one of them, or say so in renames"
        )


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


def _ledger_for(session: Session) -> Ledger:
    ledger = Ledger(session.database, session.lock_name)
    if session.server is not None:
        if session.server.schema is None:
            raise LedgerError("the connection has no schema: name the database in the URL")
        ledger.qualify(session.server.schema)
    return ledger


def _runner_for(session: Session, ledger: Ledger) -> MySQLRunner | SQLiteRunner:
    if session.server is None:
        return SQLiteRunner(session.database, ledger)
    return MySQLRunner(session.database, ledger, session.server)


def _replica() -> str:
    identity: Any = whoami()
    return f"{identity.container}/{identity.worker}"
