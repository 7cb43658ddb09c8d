"""Every rule, in the order of the ids."""

from __future__ import annotations

from typing import Final

from sharedvol.lint.rule import Rule
from sharedvol.lint.rules import capacity, comments, identity, mounts, rotation, scripts, start, stop, traffic, volumes
from sharedvol.lint.rules.comments import unused as UNUSED
from sharedvol.lint.rules.comments import wrong as WRONG

ALL: Final[tuple[Rule, ...]] = (
    *identity.RULES,
    *mounts.RULES,
    *volumes.RULES,
    *start.RULES,
    *stop.RULES,
    *capacity.RULES,
    *traffic.RULES,
    *scripts.RULES,
    *rotation.RULES,
)
EVERY: Final[tuple[Rule, ...]] = (*ALL, *comments.RULES)

__all__ = ["ALL", "EVERY", "UNUSED", "WRONG"]
