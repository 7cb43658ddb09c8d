"""Apply migrations once, however many replicas start at the same moment.

The order is that of the R start-up: check the image's migrations, query without a lock whether any are pending, and
only then take the lock, query again, apply and record. The lock is taken on the connection that migrates. If a replica
is killed, the server keeps the lock until the statement that it was running has ended.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal, cast

from sharedvol.arguments import check_seconds
from sharedvol.database.connection import Database
from sharedvol.errors import (
    AheadError,
    DriftError,
    HalfAppliedError,
    LedgerError,
    LockError,
    LockTimeout,
    ManifestError,
    MigrationError,
    SharedVolError,
)
from sharedvol.locks.mysql.lock import Waiting
from sharedvol.locks.mysql.server import LockHolder
from sharedvol.migrations.lock import MigrationLock
from sharedvol.migrations.manifest import Expected, Manifest
from sharedvol.migrations.sources.base import HalfAppliedPolicy, Session, Source
from sharedvol.migrations.sources.directory import Directory
from sharedvol.migrations.status import MigrationFailed, MigrationStatus, Step, Survey

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

    from sharedvol.database.connection import Target

_log = logging.getLogger(__name__)


class MigrationCoordinator:
    """Applies pending migrations, in one replica at a time.

    ::

        status = MigrationCoordinator("mysql://app@db/shop", "/app/migrations").run()

    Args:
        url_or_engine: the database: a URL, an SQLAlchemy ``URL`` or ``Engine``. MySQL, MariaDB, or SQLite for
            development, which is guarded by a `FileLock` next to the file. With a URL, a driver that supports it takes
            several statements in one packet. Without that, a kill during a statement leaves its end unknown.
        migrations: a directory of ``*.sql`` files, or another kind: `sharedvol.migrations.AlembicMigrations`,
            `sharedvol.migrations.PythonMigrations`.
        lock_name: a literal name of the lock on the server, such as one that R replicas use. By default the name is
            the schema's own, so that two applications on one server do not wait for each other.
        lock_timeout: seconds to wait for another replica; None to wait indefinitely.
        expected_latest: the name that the last migration of the image must have.
        expected_min_count: how many migrations the image must have at least.
        renames: old names of files, with the new names of the same files. Their rows are renamed, and nothing runs
            again.
        half_applied: what to do with a migration that began and did not end. ``resume`` resumes at the exact statement
            if that is known, and otherwise refuses; ``refuse`` always refuses; ``rerun`` runs it from its first
            statement again.
        resume_at: the statement at which to resume a migration, by its name, after a refusal and a check by a person.
        drift: ``tell`` logs a warning if the text of an applied migration has changed, ``refuse`` refuses to run.
        ahead: whether to ``allow`` or ``refuse`` a database with migrations that this image does not have.
        allow_empty: accept an image without migrations.
        allow_unsafe: run even if the server's lock may not exclude other replicas (a cluster, a pooler).
        observer: called with each `Step`. An exception that it raises stops the run.

    Raises:
        ValueError: an option has an invalid value.
        TypeError: ``url_or_engine`` is an SQLAlchemy ``Connection``.
    """

    def __init__(  # noqa: PLR0913 # keyword options of a public class
        self,
        url_or_engine: Target,
        migrations: str | os.PathLike[str] | Source,
        *,
        lock_name: str | None = None,
        lock_timeout: float | None = 30,
        expected_latest: str | None = None,
        expected_min_count: int | None = None,
        renames: Mapping[str, str] | None = None,
        half_applied: HalfAppliedPolicy = "resume",
        resume_at: Mapping[str, int] | None = None,
        drift: Literal["tell", "refuse"] = "tell",
        ahead: Literal["allow", "refuse"] = "allow",
        allow_empty: bool = False,
        allow_unsafe: bool = False,
        observer: Callable[[Step], object] | None = None,
    ) -> None:
        _one_of("half_applied", half_applied, ("resume", "refuse", "rerun"))
        _one_of("drift", drift, ("tell", "refuse"))
        _one_of("ahead", ahead, ("allow", "refuse"))
        if lock_name == "":
            raise ValueError("lock_name is empty: leave it out for the schema's own lock")
        check_seconds(lock_timeout, "lock_timeout")
        if hasattr(url_or_engine, "in_transaction"):
            # Its transaction would show the state from before the lock.
            raise TypeError("a migration needs a session of its own: give the URL or the Engine, not a Connection")
        self._target = url_or_engine
        self._source = Directory(migrations, renames) if isinstance(migrations, str | os.PathLike) else migrations
        self._lock, self._lock_timeout = MigrationLock(lock_name, allow_unsafe, self._report_wait), lock_timeout
        self._expected = Expected(expected_latest, expected_min_count, allow_empty)
        self._half_applied, self._resume_at = half_applied, dict(resume_at or {})
        self._drift, self._ahead = drift, ahead
        self._observer = observer
        self._current = MigrationStatus()
        self._waits = 0

    @property
    def current(self) -> MigrationStatus:
        """What this coordinator does or did. Does not query the database, and is safe from any thread."""
        return self._current

    def run(self) -> MigrationStatus:
        """Apply what is pending, or wait until another replica has.

        When it returns, nothing is pending. When it raises, `current` says what was applied before.

        Raises:
            ManifestError: the image does not have what was expected, or a script cannot be read.
            DatabaseError: the database cannot be reached.
            LockTimeout: another replica did not end in time. The message names the holder.
            LockUnsafeError: the server's lock would not exclude other replicas.
            LedgerError: the ledger cannot be read, or contradicts the directory.
            HalfAppliedError: a migration began earlier, did not end, and cannot or may not be resumed.
            DriftError, AheadError: the options refuse the state of the database.
            MigrationFailed: a migration failed; ``status`` says what was applied before.
        """
        self._current = MigrationStatus(state="migrating", activity="looking for pending migrations")
        self._waits = 0
        try:
            self._run()
        except BaseException as error:
            self._change(state="failed", error=str(error) or type(error).__name__, activity=None)
            applied = ", ".join(self._current.filenames)
            before = f"; applied by this run before: {applied}" if applied and applied not in str(error) else ""
            _log.error("migrations failed: %s%s", self._current.error, before)
            raise
        return self._current

    def plan(self) -> Survey:
        """Return what `run` would find pending now. Takes no lock and changes nothing.

        Raises:
            ManifestError, DatabaseError, LedgerError: as `run`.
        """
        self._check(self._source.load())
        with contextlib.closing(Database.open(self._target)) as database:
            survey = self._source.survey(database)
            return self._source.count(database, survey) if isinstance(self._source, Directory) else survey

    @property
    def engine(self) -> Engine | None:
        """The SQLAlchemy engine that was given; None if that was a URL."""
        return cast("Engine", self._target) if hasattr(self._target, "pool") else None

    def read_manifest(self) -> Manifest:
        """Return what the image has now. Does not query the database.

        Raises:
            ManifestError: it does not have what was expected, or a script that cannot be read.
        """
        return self._check(self._source.load())

    def status(self, *, patience: float | None = None, connection: Connection | None = None) -> MigrationStatus:
        """Return the state of the database now, with the lock's holder. Takes no lock and changes nothing.

        Args:
            patience: seconds to wait for each answer of the server; None for no limit. PyMySQL only.
            connection: an SQLAlchemy connection to the same database, in autocommit mode, to use instead of a new one.

        Raises:
            ManifestError, DatabaseError, LedgerError: as `run`.
        """
        checked = self._check(self._source.load())
        with contextlib.closing(Database.open(connection or self._target, patience=patience)) as database:
            survey = self._source.survey(database)
            name, holder = self._lock.find_holder(database)
        return _surveyed(
            MigrationStatus(manifest=checked, lock_name=name, lock_holder=holder.as_dict() if holder else None), survey
        )

    def _run(self) -> None:
        names = self._source.load()
        self._change(total_migrations=len(names), manifest=self._check(names))
        if unknown := sorted(set(self._resume_at) - set(names)):
            raise ManifestError(f"resume_at names {unknown[0]!r}, which is not among the migrations")
        with contextlib.closing(Database.open(self._target)) as database:
            survey = self._survey(database)
            if not survey.pending:
                self._end(survey, fast_path=True)
                return
            begun = time.monotonic()
            with self._locked(database, begun) as session:
                self._change(lock_acquired=True, state="migrating", activity="looking again, with the lock")
                waited = self._waits > 0
                if not waited:
                    survey = self._apply_pending(session)
            if waited:
                # Most likely the other replica did it all. Without the lock, a crowd of waiters can check at once.
                survey = self._survey(database)
                if survey.pending:
                    with self._locked(database, begun) as session:
                        survey = self._apply_pending(session)
            self._end(survey)

    def _apply_pending(self, session: Session) -> Survey:
        survey = self._survey(session.database)  # it may have changed before the lock was taken
        if survey.pending:
            self._apply(session, survey)
            survey = self._survey(session.database)
        return survey

    def _apply(self, session: Session, survey: Survey) -> None:
        try:
            for name in self._source.apply(session, survey):
                done = [*self._current.filenames, name]
                left = [other for other in self._current.pending if other != name]
                self._change(filenames=done, newly_applied=len(done), pending=left, pending_migrations=len(left))
        except (HalfAppliedError, LedgerError, LockError, ManifestError):
            self._refresh(session.database)
            raise
        except Exception as error:
            done = self._current.filenames
            before = f"; applied by this run before: {', '.join(done)}" if done else ""
            self._refresh(session.database)
            self._change(state="failed", error=str(error), activity=None)
            raise MigrationFailed(f"{error}{before}", self._current) from error

    def _refresh(self, database: Database) -> None:
        """Update what is pending after a failure, if the database still answers."""
        with contextlib.suppress(SharedVolError):
            self._current = _surveyed(self._current, self._source.survey(database))

    def _survey(self, database: Database) -> Survey:
        survey = self._source.survey(database)
        self._current = replace(_surveyed(self._current, survey), state="migrating")
        if survey.drifted:
            text = f"changed since they were applied: {', '.join(survey.drifted)}"
            if self._drift == "refuse":
                raise DriftError(
                    f"migrations were {text}; restore the old text and write a new migration, or set drift=tell"
                )
            _log.warning("migrations were %s", text)
        if survey.ahead:
            text = f"the database has migrations that this image does not know: {', '.join(survey.ahead)}"
            if self._ahead == "refuse":
                raise AheadError(f"{text}; use the newer image, or set ahead=allow")
            _log.warning("%s", text)
        return survey

    @contextlib.contextmanager
    def _locked(self, database: Database, begun: float) -> Iterator[Session]:
        """Hold the lock. Wait for it until ``lock_timeout`` has passed since ``begun``."""
        left = None if self._lock_timeout is None else max(0.0, self._lock_timeout - (time.monotonic() - begun))
        try:
            held = self._lock.acquire(database, left)
        except LockTimeout as error:
            holder = error.holder.as_dict() if isinstance(error.holder, LockHolder) else None
            self._change(lock_name=error.lock_file, lock_holder=holder, waited=time.monotonic() - begun)
            raise
        name = held.name or self._current.lock_name
        self._change(lock_name=name, lock_holder=None, waited=time.monotonic() - begun)
        try:
            yield Session(database, held.server, held.name, self._half_applied, self._resume_at, self._report)
        finally:
            held.release()

    def _report_wait(self, waiting: Waiting) -> None:
        self._waits += 1
        who = f"held by {waiting.holder}" if waiting.holder else "held by another process"
        _log.info("waiting for lock %r, %s, for %.0f s so far", waiting.name, who, waiting.waited)
        self._change(
            state="waiting",
            activity=f"waiting for lock {waiting.name!r}, {who}",
            lock_name=waiting.name,
            lock_holder=waiting.holder.as_dict() if waiting.holder else None,
            waited=waiting.waited,
        )
        if self._observer is not None:
            self._observer(Step("waiting", waiting.name, seconds=waiting.waited, detail=str(waiting.holder or "")))

    def _report(self, step: Step) -> None:
        if step.kind == "statement":
            what = f"statement {step.statement} of {step.statements} ({step.detail})"
            self._change(activity=f"migration {step.number} of {step.of}: {step.name}, {what}")
        elif step.kind == "started":
            self._change(activity=f"migration {step.number} of {step.of}: {step.name}")
        if self._observer is not None:
            self._observer(step)

    def _end(self, survey: Survey, *, fast_path: bool = False) -> None:
        done = _surveyed(self._current, survey)
        self._current = replace(done, fast_path=fast_path, activity=None, last_run=datetime.now(UTC))
        if survey.pending:
            raise MigrationError(f"still pending after the run: {', '.join(survey.pending)}")

    def _check(self, names: list[str]) -> Manifest:
        try:
            return self._expected.check(names, self._source.label)
        except ManifestError:
            self._change(manifest=self._expected.compared(names, ok=False))
            raise

    def _change(self, **values: Any) -> None:
        self._current = replace(self._current, **values)


def _surveyed(status: MigrationStatus, survey: Survey) -> MigrationStatus:
    return replace(
        status,
        pending_migrations=len(survey.pending),
        total_migrations=len(survey.names),
        state=survey.state,
        pending=survey.pending,
        ahead=survey.ahead,
        drifted=survey.drifted,
        half_applied=survey.half_applied,
    )


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, not {value!r}")
