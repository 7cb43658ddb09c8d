"""The error of lint."""

from __future__ import annotations

from sharedvol.errors import SharedVolError
from sharedvol.lint.compose.node import Position


class LintError(SharedVolError):
    """A file to check cannot be read.

    Attributes:
        what: what is wrong, without the position.
        at: where it is, if that is known.
    """

    def __init__(self, what: str, at: Position | None = None) -> None:
        super().__init__(f"{at}: {what}" if at else what)
        self.what, self.at = what, at
