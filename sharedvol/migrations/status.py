"""What is known about the migrations, as plain data for logs, health checks and people."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from sharedvol.errors import MigrationError
from sharedvol.migrations.manifest import Manifest

State = Literal["unknown", "waiting", "migrating", "pending", "up_to_date", "ahead", "failed"]


@dataclass(frozen=True)
class HalfApplied:
    """A migration that began and did not end.

    Attributes:
        name: the migration.
        statements: how many statements it has now.
        done: how many statements ended.
        next: the statement to resume with, counted from 1: the one that failed, or whose end is not known.
        line: the line of that statement in the file; 0 if that is not known.
        words: the first words of that statement, such as ``ALTER TABLE orders``; never its values.
        error: what the server said, if anything.
        obstacle: why it cannot be resumed automatically; None if it can.
    """

    name: str
    statements: int
    done: int
    next: int
    line: int
    words: str
    error: str | None
    obstacle: str | None

    def as_dict(self) -> dict[str, Any]:
        """Return the fields for JSON, with ``can_resume``."""
        return {**self.__dict__, "can_resume": self.obstacle is None}

    def __str__(self) -> str:
        where = f"statement {self.next} (line {self.line}, {self.words})" if self.words else f"statement {self.next}"
        if self.next > self.statements:
            text = f"{self.name}: all {self.statements} statements are done; it is not recorded as applied yet"
        else:
            text = f"{self.name}: {self.done} of {self.statements} statements are done, {where} is next"
        if self.error:
            text += f"; it failed with: {self.error}"
        return f"{text}; {self.obstacle}" if self.obstacle else text


@dataclass(frozen=True)
class Survey:
    """The state of the database, compared with the migrations of the image.

    Attributes:
        names: every migration of the image, in order.
        pending: those that are not recorded as applied, in order.
        renames: pairs of a recorded old name and the new name of its file.
        ahead: recorded names that the image does not have.
        drifted: applied migrations whose text has changed.
        half_applied: those that began and did not end.
        statements: how many statements each pending one has, if that is known.
    """

    names: list[str]
    pending: list[str] = field(default_factory=list)
    renames: list[tuple[str, str]] = field(default_factory=list)
    ahead: list[str] = field(default_factory=list)
    drifted: list[str] = field(default_factory=list)
    half_applied: list[HalfApplied] = field(default_factory=list)
    statements: dict[str, int] = field(default_factory=dict)

    @property
    def state(self) -> State:
        """The state in one word."""
        if self.pending:
            return "pending"
        return "ahead" if self.ahead else "up_to_date"


@dataclass(frozen=True)
class MigrationStatus:
    """What a run of the migrations did, or found. The first fields are those of the R start-up.

    Attributes:
        pending_migrations: how many are still to be applied.
        total_migrations: how many the image has.
        last_run: the time of this status, in UTC.
        newly_applied: how many this run applied.
        filenames: their names, in the order of application.
        fast_path: nothing was pending, and no lock was taken.
        lock_acquired: the lock was taken.
        manifest: the migrations that the image has.
        error: why the run failed.
        state: ``up_to_date``, ``ahead`` (the database has migrations that the image does not know), ``pending``,
            ``waiting`` or ``migrating`` (now, by this process), ``failed`` or ``unknown``.
        pending: the names of those that are still to be applied.
        ahead: as in `Survey`.
        drifted: as in `Survey`.
        half_applied: as in `Survey`.
        lock_name: the lock's name, once it is known.
        lock_holder: the holder of the lock now, or when the wait ended, for JSON.
        waited: seconds spent waiting for the lock.
        activity: what is happening now, in words.
    """

    pending_migrations: int = 0
    total_migrations: int = 0
    last_run: datetime = field(default_factory=lambda: datetime.now(UTC))
    newly_applied: int = 0
    filenames: list[str] = field(default_factory=list)
    fast_path: bool = False
    lock_acquired: bool = False
    manifest: Manifest | None = None
    error: str | None = None
    state: State = "unknown"
    pending: list[str] = field(default_factory=list)
    ahead: list[str] = field(default_factory=list)
    drifted: list[str] = field(default_factory=list)
    half_applied: list[HalfApplied] = field(default_factory=list)
    lock_name: str | None = None
    lock_holder: dict[str, Any] | None = None
    waited: float = 0.0
    activity: str | None = None

    @property
    def ready(self) -> bool:
        """Whether the application may start to serve: nothing is pending, nothing failed."""
        return self.state in ("up_to_date", "ahead") and self.error is None

    def as_dict(self) -> dict[str, Any]:
        """Return the fields for JSON. ``error`` is included only if there is one, as in R."""
        fields: dict[str, Any] = {
            "pending_migrations": self.pending_migrations,
            "total_migrations": self.total_migrations,
            "last_run": self.last_run.isoformat(timespec="milliseconds"),
            "newly_applied": self.newly_applied,
            "filenames": self.filenames,
            "fast_path": self.fast_path,
            "lock_acquired": self.lock_acquired,
            "manifest": self.manifest.as_dict() if self.manifest else None,
        }
        if self.error is not None:
            fields["error"] = self.error
        return fields | {
            "state": self.state,
            "pending": self.pending,
            "ahead": self.ahead,
            "drifted": self.drifted,
            "half_applied": [one.as_dict() for one in self.half_applied],
            "lock_name": self.lock_name,
            "lock_holder": self.lock_holder,
            "waited": round(self.waited, 3),
            "activity": self.activity,
        }


@dataclass(frozen=True)
class Step:
    """An event of a run, for an observer.

    Attributes:
        kind: ``waiting``, ``started``, ``statement`` (about to run), ``applied`` or ``renamed``.
        name: the migration; the lock's name for ``waiting``.
        number: its number among the pending migrations, counted from 1; 0 for ``waiting`` and ``renamed``.
        of: how many migrations are pending.
        statement: the statement, counted from 1; for ``applied`` the number of statements that ran.
        statements: how many statements the migration has.
        line: the line of the statement.
        seconds: the time since the wait or the migration began.
        detail: the lock's holder; the first words of the statement; the old name.
    """

    kind: Literal["waiting", "started", "statement", "applied", "renamed"]
    name: str
    number: int = 0
    of: int = 0
    statement: int = 0
    statements: int = 0
    line: int = 0
    seconds: float = 0.0
    detail: str = ""


class MigrationFailed(MigrationError):
    """A run of the migrations failed. What was applied before stays applied and recorded.

    Attributes:
        status: the state of the run, including ``error``.
    """

    def __init__(self, message: str, status: MigrationStatus) -> None:
        super().__init__(message)
        self.status = status
