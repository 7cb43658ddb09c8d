"""What a place in the spool means: the kind of a file and the container it is of.

Two layouts, side by side in one spool, told apart by the first directory::

    <container>/<kind>/**          a directory per container
    <kind>/**                      flat: the container stands in the file's name, as R writes it
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import date as Date
from typing import TypeGuard

from sharedvol import InvalidNameError, parse_name

HIDDEN = "."
"""Names that begin so are nobody's results: temporaries, and our own directory."""


@dataclass(slots=True)
class Origin:
    """Where a file comes from.

    Attributes:
        kind: ``results`` or ``logs``, or another kind that is configured.
        container: the container's name.
        below: the path below the kind's directory.
        day: the day in an R log's name, else None.
    """

    kind: str
    container: str
    below: str
    day: Date | None = None


class Layout:
    """The rules of one spool.

    Args:
        kinds: the names of the kinds' directories.
        pattern: for flat directories, how a file's name tells its container: a regular expression with a
            group ``container``, and a group ``date`` (YYYYMMDD) if it likes. Default: the forms that
            `sharedvol.parse_name` knows.
    """

    def __init__(self, kinds: tuple[str, ...], pattern: re.Pattern[str] | None = None) -> None:
        self.kinds = kinds
        self._pattern = pattern

    def origin(self, path: str) -> Origin | None:
        """What a path relative to the spool means; None where it is in no source or tells no container."""
        first, _, rest = path.partition("/")
        if first in self.kinds:
            return self._flat(first, rest) if rest else None
        kind, _, below = rest.partition("/")
        if kind in self.kinds and below:
            return Origin(kind, first, below, self._day(below))
        return None

    def _flat(self, kind: str, below: str) -> Origin | None:
        base = below.rpartition("/")[2]
        if self._pattern is None:
            try:
                parsed = parse_name(base)
            except InvalidNameError:
                return None
            return Origin(kind, parsed.container, below, parsed.date) if _plain(parsed.container) else None
        found = self._pattern.search(base)
        container = found["container"] if found else None
        if not found or not _plain(container):
            return None
        groups = found.groupdict()
        return Origin(kind, container, below, _parse_day(groups.get("date") or ""))

    def _day(self, below: str) -> Date | None:
        if not below.endswith(".log"):  # the one form with a day in it
            return None
        try:
            return parse_name(below.rpartition("/")[2]).date
        except InvalidNameError:
            return None


def _plain(container: str | None) -> TypeGuard[str]:
    """Whether what a file's name tells can be a part of a path: ``x_...json`` names the container ``..``."""
    return container is not None and container != "" and "/" not in container and not container.startswith(HIDDEN)


def _parse_day(digits: str) -> Date | None:
    try:
        return Date(int(digits[:4]), int(digits[4:6]), int(digits[6:]))
    except ValueError:
        return None
