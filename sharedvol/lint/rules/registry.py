"""All rules, in the order of their ids."""

from __future__ import annotations

from typing import Final

from sharedvol.lint.rule import Rule
from sharedvol.lint.rules import capacity, comments, identity, mounts, rotation, scripts, start, stop, traffic, volumes

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
"""The rules that check a project."""

EVERY: Final[tuple[Rule, ...]] = (*ALL, *comments.RULES)
"""All rules, with those about the comments that accept findings."""
