"""What the ledger's tables contain, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class ProgressRow:
    """A row of our own table.

    Attributes:
        id: the row's number, for the marks.
        name: the migration.
        checksum: the checksum of its text when it ran last; empty if it never ran from a file.
        applied: it ended.
        statements: how many statements it had.
        started: the last statement that began.
        done: the last statement that ended.
        error_at: the statement that failed and left nothing; 0 if there is none.
        error: what the server said.
    """

    id: int
    name: str
    checksum: str
    applied: bool
    statements: int
    started: int
    done: int
    error_at: int
    error: str | None

    @property
    def half_applied(self) -> bool:
        """Whether it began and did not end."""
        return not self.applied and self.started > 0


@dataclass(frozen=True)
class Records:
    """The content of both tables.

    Attributes:
        exists: the ledger exists.
        applied: the recorded names, with whether they succeeded.
        progress: our rows by name; None if this account may not read them.
    """

    exists: bool
    applied: Mapping[str, bool]
    progress: Mapping[str, ProgressRow] | None

    @property
    def succeeded(self) -> set[str]:
        """The names that are recorded as applied with success."""
        return {name for name, success in self.applied.items() if success}
