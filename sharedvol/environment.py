"""The environment variables that sharedvol reads, and how to find mistyped ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

PREFIX: Final = "SHAREDVOL_"

_LIBRARY: Final = ("DATABASE_PASSWORD", "DATABASE_PASSWORD_FILE", "LOCK_TIMEOUT", "LOCK_TOKEN", "STRICT")
_SETTINGS: Final = (
    *("ALLOWED_HOSTS", "ALLOW_NETWORK", "CATALOG", "COMPRESS", "DIGESTS", "DIRECTORY_MODE", "FILE_MODE", "FOLLOW"),
    *("FOLLOW_INTERVAL", "FROM", "GRACE", "INTERVAL", "KEEP", "KINDS", "LISTEN", "MIN_FREE", "ORPHANS", "OWNER"),
    *("PATTERN", "PRUNE", "QUIET", "RATE", "SEAL_AFTER", "STRICT", "TEMPLATE", "TO", "WORKERS"),
)
NAMES: Final = frozenset(
    PREFIX + name for name in (*_LIBRARY, "CONFIG", *_SETTINGS, *(f"{setting}_FILE" for setting in _SETTINGS))
)
"""Every variable that the library or the sidecar reads."""

_SHORT: Final = 4  # letters after the prefix that a name needs to be recognised with one wrong letter
_LONG: Final = 6  # the same with two wrong letters


def mistyped(environment: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Find variables that sharedvol does not read but whose names are close to one that it reads.

    Other programs may use the same prefix, so a name that is not close to a known one is not reported.

    Returns:
        Pairs of the name that is set and the name that was probably meant.
    """
    for name in sorted(environment):
        if name in NAMES or not name.upper().startswith(PREFIX[:4]):
            continue
        near = [(distance, known) for known in NAMES if (distance := _distance(name.upper(), known)) <= _limit(known)]
        if near:
            yield name, min(near)[1]


def _limit(known: str) -> int:
    """Return how many letters may be wrong."""
    letters = len(known) - len(PREFIX)
    return 2 if letters >= _LONG else 1 if letters >= _SHORT else 0


def _distance(one: str, other: str) -> int:
    """Count the edits between two names: insert, remove, replace, or swap neighbours."""
    if abs(len(one) - len(other)) > 2:
        return 3
    before: list[int] = []
    last = list(range(len(other) + 1))
    for i, letter in enumerate(one, 1):
        row = [i]
        for j, wanted in enumerate(other, 1):
            cost = min(last[j] + 1, row[-1] + 1, last[j - 1] + (letter != wanted))
            if i > 1 and j > 1 and letter == other[j - 2] and one[i - 2] == wanted:
                cost = min(cost, before[j - 2] + 1)
            row.append(cost)
        before, last = last, row
    return last[-1]
