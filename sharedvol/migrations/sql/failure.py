"""The error of a statement that failed."""

from __future__ import annotations

from sharedvol.errors import DatabaseError, MigrationError


class StatementFailed(MigrationError):
    """A statement of a migration failed.

    Attributes:
        number: which statement, counted from 1.
        cause: what the server said.
        whole: nothing of the statement remains; False if that is not known.
    """

    def __init__(self, number: int, cause: DatabaseError, *, whole: bool) -> None:
        super().__init__(str(cause))
        self.number, self.cause, self.whole = number, cause, whole
