"""The errors of lint."""

from __future__ import annotations

from sharedvol.errors import SharedVolError
from sharedvol.lint.compose.node import Position


class LintError(SharedVolError):
    """What is to be looked at cannot be read.

    Attributes:
        at: where, as far as that is known.
    """

    def __init__(self, what: str, at: Position | None = None) -> None:
        super().__init__(f"{at}: {what}" if at else what)
        self.what, self.at = what, at
