"""What a kind of migration is to the coordinator, and what the kinds that the ledger records have in common."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Mapping
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


def begin_at(one: HalfApplied, session: Session) -> int:
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


def refuse_resumes(session: Session, survey: Survey, statements: Mapping[str, int]) -> None:
    """Refuse to leave out statements of a migration that never began, or more of them than there are.

    An option that stayed in a start-up script would otherwise leave them out of the next new database, too.

    Raises:
        HalfAppliedError: naming the migration.
    """
    half = {one.name for one in survey.half_applied}
    for name, number in session.resume_at.items():
        if name not in survey.pending:
            continue  # it is applied by now
        if name not in half:
            raise HalfAppliedError(
                f"{name!r} has not begun here, so none of its statements may be left out: say --resume-at (resume_at) "
                "only for what was refused, and leave it out afterwards"
            )
        if not 1 <= number <= statements[name] + 1:
            raise HalfAppliedError(f"{name!r} has {statements[name]} statements: it cannot go on at {number}")


def refuse_clashes(ledger: Ledger, names: Collection[str]) -> None:
    for name in ledger.unfit(names):
        raise LedgerError(
            f"the ledger cannot hold the name {name!r}, whose characters its column does not have: rename the file, or "
            "give the column the character set utf8mb4"
        )
    for one, other in ledger.clashes(names):
        raise LedgerError(
            f"the ledger cannot tell {one!r} from {other!r}: its column compares without case or accents, so the "
            "second would be run and not be recorded; rename one of them, or say so in renames"
        )


def ledger_for(session: Session) -> Ledger:
    """The ledger, to be written under the lock."""
    if session.server is not None and session.server.schema is None:
        raise LedgerError("the connection has no schema: name the database in the URL")
    return Ledger(session.database, session.lock_name)


def replica() -> str:
    identity = whoami()
    return f"{identity.container}/{identity.worker}"
