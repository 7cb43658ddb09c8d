"""What a rule of the suite is: a check that asserts, the seats it needs, and the registry of all."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from adapter import Adapter, Claims, meet


class Scene(Protocol):
    """Where a check plays: a directory of its own, and further adapters of the kinds that have its seats."""

    directory: Path

    def another(self, like: Adapter) -> Adapter:
        """One more running adapter of the kind of ``like``."""
        ...

    def claims(self, of: Adapter) -> Claims:
        """What ``of`` said when it was asked hello."""
        ...


@dataclass(frozen=True)
class Rule:
    """One rule, and the check of it.

    Attributes:
        id: the rule of docs/protocol.md, and the check's name: ``LOCK-3.both_and_each``.
        says: the rule in a line.
        needs: for each seat, what its adapter must be capable of, in one string.
        meeting: only for adapters whose lock families exclude each other.
        ordered: the seats differ, so each pair is tried both ways.
        families: the lock family that each seat must have, where the rule is about that.
        check: called with the scene and an adapter for each seat; raises AssertionError.
    """

    id: str
    says: str
    needs: tuple[str, ...]
    meeting: bool
    ordered: bool
    families: tuple[str, ...]
    check: Callable[..., Any]

    def missing(self, seats: Sequence[Claims]) -> list[str]:
        """What the adapters in these seats lack: ``java does not claim: fence``."""
        found = {
            f"{claims.language} does not claim: {' '.join(lacking)}": None
            for need, claims in zip(self.needs, seats, strict=True)
            if (lacking := [word for word in need.split() if word not in claims.capabilities])
        }
        return list(found)

    def row(self) -> str:
        """Its line in the table of the README."""
        return f"| {self.id} | {self.says} | {' beside '.join(f'`{need}`' for need in self.needs)} |"

    def suits(self, seats: Sequence[Claims]) -> bool:
        """Whether the lock families in these seats do what the rule is about."""
        if self.families:
            return self.families == tuple(claims.family for claims in seats)
        pairs = itertools.combinations((claims.family for claims in seats), 2)
        return not self.meeting or all(meet(one, other) for one, other in pairs)

    def seatings(self, names: Iterable[str]) -> Iterator[tuple[str, ...]]:
        """Every way to fill the seats."""
        if self.ordered:
            return itertools.product(names, repeat=len(self.needs))
        return itertools.combinations_with_replacement(names, len(self.needs))


RULES: dict[str, Rule] = {}


def rule(
    id: str, says: str, *needs: str, meeting: bool = False, ordered: bool = True, families: tuple[str, ...] = ()
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a check of the rule ``id``, one ``needs`` for each seat: the capabilities in a string."""

    def register(check: Callable[..., Any]) -> Callable[..., Any]:
        key = f"{id}.{check.__name__}"
        assert key not in RULES, key
        RULES[key] = Rule(key, says, needs, meeting, ordered, families, check)
        return check

    return register


def read_marks(path: Path) -> str:
    """What was appended to a data file."""
    return os.fsdecode(path.read_bytes())
