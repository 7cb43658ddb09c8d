"""Rules for comments that accept no finding."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from sharedvol.lint.project import Project
from sharedvol.lint.rule import Rule, Severity, Violation, rule


def _found_elsewhere(_: Project) -> Iterator[Violation]:
    """Find nothing: `sharedvol.lint.check` checks the comments after all other rules."""
    yield from ()


WRONG: Final[Rule] = rule(
    "SV900",
    "a comment that accepts nothing: no rule, no reason, or an unknown rule",
    Severity.warning,
    why="""A finding is accepted for a reason, and the next reader needs to know it. A comment with a mistyped id, or
    without a reason, accepts nothing, although its author believes that it does.""",
    mend="Write `# sharedvol: ignore SV012 why it is safe here`, with an id that `--list-rules` shows.",
)(_found_elsewhere)

UNUSED: Final[Rule] = rule(
    "SV901",
    "a comment that accepts a finding that does not exist",
    Severity.warning,
    why="""The finding no longer exists, or the comment is on another line. If an unrelated change brings the hazard
    back, the comment would accept it unnoticed.""",
    mend="""Remove the comment, or put it on the finding's line, alone on the line above it, on the first line of the
    service or at the top of the file.""",
)(_found_elsewhere)

RULES: Final[tuple[Rule, ...]] = (WRONG, UNUSED)
