"""What the coordinator needs of a kind of migration, and what the kinds that use the ledger share."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from sharedvol.database.connection import Database
from sharedvol.errors import HalfAppliedError, LedgerError
from sharedvol.identity import whoami
from sharedvol.locks.mysql.server import Server
from sharedvol.migrations.ledger import Ledger
from sharedvol.migrations.status import HalfApplied, Step, Survey

HalfAppliedPolicy = Literal["resume", "refuse", "rerun"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Session:
    """The connection that holds the lock, and the options that apply to it.

    Attributes:
        database: the connection.
        server: its server; None for SQLite.
        lock_name: the lock's name on the server; None for SQLite.
        half_applied: what to do with a migration that began earlier and did not end.
        resume_at: the statement at which to resume a migration, by the migration's name, as a person decided.
        report: called with each `Step`.
    """

    database: Database
    server: Server | None
    lock_name: str | None
    half_applied: HalfAppliedPolicy
    resume_at: Mapping[str, int]
    report: Callable[[Step], object]


class Source(Protocol):
    """A kind of migration.

    Attributes:
        label: what to call it in a message.
    """

    label: str

    def load(self) -> list[str]:
        """Return the names of the image's migrations, in order. Raises `ManifestError`."""

    def survey(self, database: Database) -> Survey:
        """Return which of them are pending. Changes nothing. Raises `LedgerError`."""

    def apply(self, session: Session, survey: Survey) -> Iterator[str]:
        """Apply the pending ones. Yield each name once it is applied and recorded."""


def begin_at(one: HalfApplied, session: Session) -> int:
    """Return how many statements of a half-applied migration to skip.

    Raises:
        HalfAppliedError: it cannot be resumed, or the options forbid it.
    """
    if one.name in session.resume_at:
        return session.resume_at[one.name] - 1
    if session.half_applied == "rerun":
        return 0
    if session.half_applied == "resume" and one.obstacle is None:
        _log.warning("migration %s resumes where it stopped: %s", one.name, one)
        return one.next - 1
    raise HalfAppliedError(
        f"half-applied migration {one}. Check the database. Then give --resume-at {one.name}:{one.next} (resume_at) if "
        f"that statement has not been done, or {one.name}:{one.next + 1} if it has. Or undo the rest by hand and give "
        "--half-applied rerun"
    )


def check_resume_at(session: Session, survey: Survey, statements: Mapping[str, int]) -> None:
    """Refuse to skip statements of a migration that never began, or more statements than it has.

    An option that stayed in a start-up script would otherwise skip them in the next new database as well.

    Raises:
        HalfAppliedError: names the migration.
    """
    half = {one.name for one in survey.half_applied}
    for name, number in session.resume_at.items():
        if name not in survey.pending:
            continue  # it has been applied since
        if name not in half:
            raise HalfAppliedError(
                f"{name!r} has not begun here, so none of its statements may be left out: give --resume-at (resume_at) "
                "only for a migration that was refused, and remove it afterwards"
            )
        if not 1 <= number <= statements[name] + 1:
            raise HalfAppliedError(f"{name!r} has {statements[name]} statements: it cannot resume at {number}")


def writable_ledger(session: Session) -> Ledger:
    """Return the ledger, to write to under the lock.

    Raises:
        LedgerError: the connection has no schema.
    """
    if session.server is not None and session.server.schema is None:
        raise LedgerError("the connection has no schema: name the database in the URL")
    return Ledger(session.database, session.lock_name)


def replica_name() -> str:
    """Return the name of this process in the ledger: the container and the worker."""
    identity = whoami()
    return f"{identity.container}/{identity.worker}"
