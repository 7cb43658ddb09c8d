"""Find out how far a migration got that began and did not end."""

from __future__ import annotations

from collections.abc import Sequence

from sharedvol.migrations.ledger import Ledger, digest
from sharedvol.migrations.records import ProgressRow
from sharedvol.migrations.sql import session_state
from sharedvol.migrations.sql.mysql_script import Statement
from sharedvol.migrations.sql.statements import heading, is_repeatable
from sharedvol.migrations.status import HalfApplied


def inspect_half_applied(ledger: Ledger, row: ProgressRow, statements: Sequence[Statement] | None) -> HalfApplied:
    """Find out how far a migration got, and whether it can be resumed exactly there.

    Args:
        ledger: the ledger with its row.
        row: its row.
        statements: its statements now; None if its text cannot be split.
    """
    if statements is None:
        obstacle = "its text cannot be split into statements now"
        return HalfApplied(row.name, row.statements, row.done, row.done + 1, 0, "", row.error, obstacle)
    following = row.done + 1
    upcoming = statements[following - 1] if following <= len(statements) else None
    return HalfApplied(
        name=row.name,
        statements=len(statements),
        done=row.done,
        next=following,
        line=upcoming.line if upcoming else 0,
        words=heading_of(upcoming) if upcoming else "",
        error=row.error,
        obstacle=_obstacle(ledger, row, statements) or session_state.obstacle(statements, row.done),
    )


def _obstacle(ledger: Ledger, row: ProgressRow, statements: Sequence[Statement]) -> str | None:
    """Return why the file or its marks forbid to resume; None if they allow it."""
    before = ledger.digests(row)
    now = [digest(statement) for statement in statements]
    if before[: row.done] != now[: row.done]:
        return f"its first {row.done} statements, which were run, are others now"
    if row.started <= row.done or row.error_at > row.done:
        return None
    # A statement began, and neither its end nor its failure was recorded.
    if row.started > row.statements:
        return "what was begun after them may have written to a table whose engine cannot undo it"
    same = row.started <= len(now) and before[row.started - 1] == now[row.started - 1]
    if same and row.started == row.done + 1 and is_repeatable(statements[row.started - 1].text):
        return None
    return f"statement {row.started} was begun and it is not known whether it was done"


def heading_of(statement: Statement) -> str:
    """Return the first words of a statement, without its values."""
    return heading(statement.text) or "statement"
