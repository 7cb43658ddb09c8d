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

LIVE = ".live"
"""What names of files in the destination end with that are followed still; nothing else there does."""


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
        directory, _, name = path.rpartition("/")
        place = self.place(directory)
        return place.origin(name) if place is not None else None

    def place(self, directory: str) -> Place | None:
        """What a directory relative to the spool means, asked once for all its files; None where it is in no source."""
        first, _, rest = directory.partition("/")
        if first in self.kinds:
            return Place(self, first, None, f"{rest}/" if rest else "")
        kind, _, rest = rest.partition("/")
        return Place(self, kind, first, f"{rest}/" if rest else "") if kind in self.kinds else None

    def flat(self, kind: str, below: str, base: str) -> Origin | None:
        """What the name of a file in a flat directory tells."""
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


class Place:
    """A directory of a source.

    Args:
        layout: the rules.
        kind: its kind.
        container: the container whose directory it is in; None in a flat one.
        below: its path below the kind's directory, with a slash at the end unless it is that one.
    """

    __slots__ = ("_below", "_container", "_layout", "kind")

    def __init__(self, layout: Layout, kind: str, container: str | None, below: str) -> None:
        self._layout, self.kind, self._container, self._below = layout, kind, container, below

    def origin(self, name: str) -> Origin | None:
        """What a file in it means; None where its name tells no container."""
        if self._container is None:
            return self._layout.flat(self.kind, self._below + name, name)
        return Origin(self.kind, self._container, self._below + name, _day(name) if name.endswith(".log") else None)


def _day(name: str) -> Date | None:
    """The day in the name of an R log."""
    try:
        return parse_name(name).date
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
