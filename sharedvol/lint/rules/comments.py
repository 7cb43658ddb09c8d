"""Rules: comments that accept nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from sharedvol.lint.project import Project
from sharedvol.lint.rule import Found, Rule, Severity, rule


def _told_elsewhere(project: Project) -> Iterator[Found]:
    """What comments accept is known only when every rule has been asked."""
    yield from ()


wrong: Final[Rule] = rule(
    "SV900",
    "a comment that accepts nothing: no rule, no reason, or an unknown rule",
    Severity.warning,
    why="""A finding is accepted for a reason, and the reason is what the next reader needs. A comment with a
    mistyped id, or without a reason, accepts nothing, though its writer believes it does.""",
    mend="Write `# sharedvol: ignore SV012 why it is safe here`, with an id that `--list-rules` shows.",
)(_told_elsewhere)

unused: Final[Rule] = rule(
    "SV901",
    "a comment that accepts what is not there",
    Severity.warning,
    why="""The finding has gone, or the comment stands on another line than it. When the hazard comes back, by a
    change that has nothing to do with it, it would be accepted unseen.""",
    mend="""Take the comment away, or put it on the finding's line, alone on the line above it, at the head of
    the service or at the head of the file.""",
)(_told_elsewhere)

RULES: Final[tuple[Rule, ...]] = (wrong, unused)
