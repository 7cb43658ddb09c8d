"""How far a migration got that began and did not end."""

from __future__ import annotations

from collections.abc import Sequence

from sharedvol.migrations.ledger import Ledger, Progress, digest
from sharedvol.migrations.sql import session_state as resuming
from sharedvol.migrations.sql import statements as kinds
from sharedvol.migrations.sql.mysql_script import Statement
from sharedvol.migrations.status import HalfApplied


def look_at_half(ledger: Ledger, row: Progress, statements: Sequence[Statement] | None) -> HalfApplied:
    """How far a migration got, and whether it can be gone on with exactly there.

    Args:
        ledger: where its row is.
        row: that row.
        statements: what it consists of now; None where it cannot be taken apart.
    """
    if statements is None:
        why = "its text cannot be taken apart now"
        return HalfApplied(row.name, row.statements, row.done, row.done + 1, 0, "", row.error, why)
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
        words=named(upcoming) if upcoming else "",
        error=row.error,
        obstacle=obstacle,
    )


def named(statement: Statement) -> str:
    """The first words of a statement, without its values."""
    return kinds.heading(statement.text) or "statement"
